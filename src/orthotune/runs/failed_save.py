"""A checkpoint that cannot be written, as on a full disk: the system's reason, what is kept, stop or go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from orthotune.errors import OutputError
from orthotune.files.failed_write import is_failed_write, reason
from orthotune.runs.checkpoint_folder import by_step

OnFailedSave = Literal["stop", "go-on"]


@contextmanager
def bearing(folder: Path, step: int, on_failed_save: OnFailedSave, say: Callable[[str], None]) -> Iterator[None]:
    """Context manager: convert an OSError while saving into an OutputError (``stop``) or a message (``go-on``).

    Args:
        folder: the folder of the run's checkpoints.
        step: steps done.
        on_failed_save: ``stop`` or ``go-on``.
        say: called with the reason, if training goes on.

    Raises:
        OutputError: the checkpoint could not be written and ``on_failed_save`` is ``stop``; names the kept checkpoint.

    Example:
        >>> with bearing(Path("runs/a/checkpoints"), 50, "go-on", print):
        ...     raise OSError(28, "No space left on device")
        ... # doctest: +ELLIPSIS
        the checkpoint of step 50 could not be written to runs/a/checkpoints. Found: No space left on device. Free ...
    """
    try:
        yield
    except Exception as fault:
        if not is_failed_write(fault):
            raise
        error = OutputError(
            f"the checkpoint of step {step} could not be written to {folder}",
            got=reason(fault),
            do=f"Free some space and go on with resume=auto: {kept(folder)}",
        )
        if on_failed_save == "stop":
            raise error from fault
        say(f"{error} Training goes on (on_failed_save=go-on).")


def kept(folder: Path) -> str:
    """A phrase for a message that names the checkpoint that is kept.

    Example:
        >>> kept(Path("no-such-run"))
        'there is no checkpoint yet'
    """
    return next((f"{path.name} is kept" for path in by_step(folder)), "there is no checkpoint yet")
