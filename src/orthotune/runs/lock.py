"""One process per run directory."""

from __future__ import annotations

from collections.abc import Callable

from orthotune.errors import OutputError
from orthotune.files.locks import FileLock, LockHeld


class RunLock(FileLock):
    """The lock of a run directory. Where there are no locks, ``take`` reports that and lets the run begin.

    Args:
        path: the lock file in the run directory, which exists.

    Example:
        >>> import pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> lock = RunLock(folder / ".lock")
        >>> lock.take(print)
        >>> lock.release()
        >>> list(folder.iterdir())
        []
    """

    def take(self, log: Callable[[str], None] | None = None) -> None:
        """Hold the lock from now on; without effect where this object holds it.

        Args:
            log: receives the message that there are no locks here.

        Raises:
            OutputError: another process holds the lock; names the process and a remedy.
        """
        try:
            self.acquire()
        except LockHeld as held:
            raise OutputError(
                f"output {self.path.parent}",
                got=f"a run, which is still going on: {held.by()}",
                do=f"Wait for it{held.command()}, then pass resume=auto; or pass output=PATH for another run",
            ) from held
        except OSError as fault:
            if log is not None:
                log(f"{self.path.parent} cannot be locked ({fault.strerror or fault}): do not start it twice.")
