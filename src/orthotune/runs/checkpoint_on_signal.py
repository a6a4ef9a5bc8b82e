"""SIGTERM and Ctrl-C during training: the step is finished, a checkpoint is saved, then the run ends."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from orthotune.files.platforms import ending_signals


class Stopped(KeyboardInterrupt):
    """A run that a signal ended; ``number`` is the signal's."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(number, message)
        self.number, self.message = number, message

    def __str__(self) -> str:
        return self.message


class StopOnSignal:
    """Within it, a signal raises ``Stopped`` at once; while ``patient``, the first one only sets ``asked``.

    A training loop that looks at ``asked`` after each step can save before it ends; a second signal does not wait.
    Handlers exist in the main thread only; elsewhere nothing is changed.

    Args:
        say: called with a message when a signal arrives and the step is still running.

    Example:
        >>> with StopOnSignal() as stop:
        ...     stop.patient = True
        ...     signal.raise_signal(signal.SIGTERM)
        ...     stop.asked
        'SIGTERM'
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.say, self.patient, self.number, self.file = say, False, 0, ""
        self._before: dict[int, Any] = {}

    @property
    def asked(self) -> str | None:
        """Name of the signal that asks to stop, or of the file; None without one."""
        return self.file or (signal.Signals(self.number).name if self.number else None)

    def ask(self, file: str) -> None:
        """Stop as by Ctrl-C, because of a file.

        Args:
            file: its name.
        """
        self.number, self.file = self.number or signal.SIGINT, file

    def stopped(self, message: str) -> Stopped:
        """The exception that ends the run."""
        return Stopped(self.number, message)

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in ending_signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again, self.number = bool(self.number), number
        name = signal.Signals(number).name
        if not self.patient:
            raise Stopped(number, f"Stopped by {name}.")
        if again:
            raise Stopped(number, f"Stopped by {name} before the checkpoint was saved.")
        # The signal may have come while something was being printed, which cannot be entered twice.
        with suppress(RuntimeError):
            (self.say or _silent)(
                f"{name}: stopping after this step and its checkpoint; a second signal stops at once."
            )


def _silent(message: str) -> None:
    """Drop the message."""
