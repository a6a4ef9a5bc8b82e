"""A text file with one prompt per line."""

from __future__ import annotations

from pathlib import Path

from orthotune.errors import DataError


def read_prompts(path: Path, limit: int, named: str) -> list[str]:
    """The prompts of a file, without empty lines.

    Args:
        path: the file.
        limit: number of prompts that are read at most.
        named: how messages name the file, as ``--data prompts.txt``.

    Raises:
        DataError: the file cannot be read or contains no prompt.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "prompts.txt"
        >>> _ = path.write_text("a red chair\\n\\na green door\\n")
        >>> read_prompts(path, 8, str(path.name))
        ['a red chair', 'a green door']
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as fault:
        got = "no such file" if isinstance(fault, FileNotFoundError) else str(fault)
        raise DataError(named, got=got, needed="a text file with one prompt per line") from fault
    found = [line.strip() for line in lines if line.strip()][:limit]
    if not found:
        raise DataError(named, got="only empty lines", needed="one prompt per line")
    return found
