"""What a user asks of a run while it trains: by a file of a given name in the run directory, or by a signal."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from enum import IntFlag
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from orthotune.files.platforms import asking_signals


class Request(IntFlag):
    """What is asked; several can be asked at once."""

    NONE = 0
    SAMPLE = 1
    SAVE = 2
    STOP = 4
    FINISH = 8


#: Names of the files in the run directory. A file is removed when its request is taken.
FILES = {
    "sample-now": Request.SAMPLE,
    "save-now": Request.SAVE,
    "stop-now": Request.STOP,
    "finish-now": Request.FINISH,
}
#: Signals, on systems that have them.
SIGNALS = {"SIGUSR1": Request.SAMPLE, "SIGUSR2": Request.SAVE}


class Requests:
    """Within it, files and signals are requests, which a training loop takes after each step.

    ``touch RUN/sample-now`` asks for samples, ``save-now`` for a checkpoint, ``stop-now`` for a checkpoint and the end,
    as Ctrl-C does, ``finish-now`` for the end in order, with the result; SIGUSR1 and SIGUSR2 are the first two. Signals
    are handled in the main thread only.

    Args:
        folder: the run directory.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Requests(folder) as requests:
        ...     (folder / "save-now").touch()
        ...     requests.take(), requests.take()
        (<Request.SAVE: 2>, <Request.NONE: 0>)
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._signalled = Path(folder), Request.NONE
        self._before: dict[int, Any] = {}

    def take(self) -> Request:
        """What was asked since the last call."""
        asked, self._signalled = self._signalled, Request.NONE
        for name, request in FILES.items():
            path = self.folder / name
            if path.exists():
                # A file that cannot be removed would ask after every step.
                with suppress(OSError):
                    path.unlink()
                    asked |= request
        return asked

    def __enter__(self) -> Requests:
        with suppress(ValueError):  # not the main thread
            for number in asking_signals():
                self._before[number] = signal.signal(number, self._handler(SIGNALS[number.name]))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _handler(self, request: Request) -> Callable[[int, FrameType | None], None]:
        def note(number: int, frame: FrameType | None) -> None:
            self._signalled |= request

        return note
