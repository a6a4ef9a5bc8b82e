"""Which files of a long export are complete, so that an interrupted one goes on where it stopped."""

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
    """A text that changes when an input does: the bytes of small files, size and time of large ones.

    Example:
        >>> fingerprint([], [], ["a"]) == fingerprint([], [], ["b"])
        False
    """
    digest = hashlib.sha256(json.dumps([*words]).encode())
    for path in sorted(small):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    for path in sorted(large):
        found = path.stat()
        digest.update(f"\0{path}\0{found.st_size}\0{found.st_mtime_ns}".encode())
    return digest.hexdigest()


class Journal:
    """The record in the folder of an export that is being written.

    Args:
        folder: where the export is built; emptied unless its record is of the same inputs.
        inputs: their :func:`fingerprint`.

    Raises:
        OutputError: the folder cannot be emptied.

    Example:
        >>> journal = Journal(Path("out.partial"), "abc")  # doctest: +SKIP
        >>> journal.done("model-00001-of-00004.safetensors")  # doctest: +SKIP
        True
    """

    def __init__(self, folder: Path, inputs: str) -> None:
        self.path, self.inputs = folder / NAME, inputs
        self.whole: list[str] = []
        try:
            found = read_json(self.path)
            if found["inputs"] == inputs:
                self.whole = [name for name in found["whole"] if (folder / name).is_file()]
        except (DataError, KeyError, TypeError):
            pass  # no record, or another program's: start afresh
        if not self.whole:
            for path in list(folder.iterdir()):
                remove(path)
            if left := list(folder.iterdir()):
                raise OutputError(f"{left[0]}", got="left by an earlier export, not removable", do="Remove it")
        for inner in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            sweep(inner)  # a killed export leaves the file that it was writing under a temporary name

    def done(self, name: str) -> bool:
        """Whether a file was written completely before."""
        return name in self.whole

    def add(self, name: str) -> None:
        """Note that a file is complete."""
        self.whole.append(name)
        write_json(self.path, {"inputs": self.inputs, "whole": self.whole})

    def close(self) -> None:
        """Remove the record: the export is complete."""
        self.path.unlink(missing_ok=True)
