"""The record of the complete files of a long export, so that an interrupted export continues where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from orthotune.errors import DataError, OutputError
from orthotune.files.atomic import remove, sweep
from orthotune.files.json_file import read_json, write_json

NAME = ".orthotune-export.json"


def fingerprint(small: Iterable[Path], large: Iterable[Path], words: Iterable[str] = ()) -> str:
    """A hash of the inputs: the bytes of small files, size and modification time of large files.

    Args:
        small: files whose bytes are hashed.
        large: files whose path, size and modification time are hashed.
        words: further values, such as options.

    Example:
        >>> fingerprint([], [], ["a"]) == fingerprint([], [], ["b"])
        False
    """
    digest = hashlib.sha256(json.dumps([*words]).encode())
    for path in sorted(small):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    for path in sorted(large):
        status = path.stat()
        digest.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()


class Journal:
    """The record inside the folder of an unfinished export.

    Args:
        folder: where the export is written; emptied unless its record has the same inputs.
        inputs: :func:`fingerprint` of the inputs.

    Raises:
        OutputError: the folder cannot be emptied.

    Example:
        >>> journal = Journal(Path("out.partial"), "abc")  # doctest: +SKIP
        >>> journal.done("model-00001-of-00004.safetensors")  # doctest: +SKIP
        True
    """

    def __init__(self, folder: Path, inputs: str) -> None:
        self.path, self.inputs = folder / NAME, inputs
        self.complete: list[str] = []
        try:
            record = read_json(self.path)
            if record["inputs"] == inputs:
                self.complete = [name for name in record["whole"] if (folder / name).is_file()]
        except (DataError, KeyError, TypeError):
            pass  # no record, or the record of another program: start from the beginning
        if not self.complete:
            for path in list(folder.iterdir()):
                remove(path)
            if left := list(folder.iterdir()):
                raise OutputError(f"{left[0]}", got="left by an earlier export, not removable", do="Remove it")
        for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            sweep(inner)  # the unfinished file of a killed export has a temporary name

    def done(self, name: str) -> bool:
        """Whether an earlier call wrote the file completely."""
        return name in self.complete

    def add(self, name: str) -> None:
        """Record that a file is complete."""
        self.complete.append(name)
        write_json(self.path, {"inputs": self.inputs, "whole": self.complete})

    def close(self) -> None:
        """Remove the record: the export is complete."""
        self.path.unlink(missing_ok=True)
