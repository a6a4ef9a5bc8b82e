"""Failed writes: recognise the error, name the reason, and say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from orthotune.errors import OrthotuneError, OutputError

_FULL, _FORBIDDEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}, {errno.EACCES, errno.EPERM, errno.EROFS}


@contextmanager
def writing(path: Path, named: str = "") -> Iterator[None]:
    """Context manager that raises an ``OutputError`` about ``path`` for an error of the system.

    Args:
        path: the file that is written.
        named: how the message calls the file; "writing PATH" if empty.

    Raises:
        OutputError: with the reason that the system gives and what to do about it.

    Example:
        >>> from orthotune.errors import OutputError
        >>> try:
        ...     with writing(Path("out/a.json")):
        ...         raise OSError(28, "No space left on device")
        ... except OutputError as error:
        ...     print(str(error).replace("\\\\", "/"))
        writing out/a.json. Found: No space left on device. Free some space, or name another folder.
    """
    try:
        yield
    except Exception as fault:
        if isinstance(fault, OrthotuneError) or not is_failed_write(fault):
            raise
        raise OutputError(named or f"writing {path}", got=reason(fault), do=remedy(fault)) from fault


def is_failed_write(fault: BaseException) -> bool:
    """Whether an error means that a file could not be written, by Python, safetensors or torch."""
    return isinstance(fault, (OSError, SafetensorError, OutputError)) or _is_torch_writer(fault)


def reason(fault: BaseException) -> str:
    """Why a write failed: the message of the system where a library passes it on.

    Example:
        >>> reason(OSError(28, "No space left on device"))
        'No space left on device'
    """
    if isinstance(fault, OSError) and fault.strerror:
        return fault.strerror
    if isinstance(fault, OutputError) and fault.got:
        return fault.got
    if _is_torch_writer(fault):
        return "a write that the system refused (the disk is full?)"
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]


def remedy(fault: BaseException) -> str:
    """What a user can do about a failed write.

    Example:
        >>> remedy(PermissionError(13, "Permission denied"))
        'Name a folder that can be written to'
    """
    number = getattr(fault, "errno", None)
    if number in _FORBIDDEN:
        return "Name a folder that can be written to"
    known = isinstance(fault, OSError) and number not in (None, *_FULL, errno.EIO)
    return "Name another folder" if known else "Free some space, or name another folder"


def _is_torch_writer(fault: BaseException) -> bool:
    """The errors of torch name only the place in its archive writer, not the reason."""
    marks = ("inline_container", "PytorchStreamWriter", "file write failed")
    return isinstance(fault, RuntimeError) and any(mark in str(fault) for mark in marks)
