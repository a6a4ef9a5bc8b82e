"""Which files of a long export are whole, so that an interrupted one goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

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

    Example:
        >>> journal = Journal(Path("out.partial"), "abc")  # doctest: +SKIP
        >>> journal.done("model-00001-of-00004.safetensors")  # doctest: +SKIP
        True
    """

    def __init__(self, folder: Path, inputs: str) -> None:
        self.path, self.inputs = folder / NAME, inputs
        self.whole: list[str] = []
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["inputs"] == inputs:
                self.whole = [name for name in found["whole"] if (folder / name).is_file()]
        except (OSError, ValueError, KeyError, TypeError):
            pass  # none, or not of ours: start afresh
        if not self.whole:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def done(self, name: str) -> bool:
        """Whether a file was written whole before."""
        return name in self.whole

    def add(self, name: str) -> None:
        """Note that a file is whole."""
        self.whole.append(name)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps({"inputs": self.inputs, "whole": self.whole}), encoding="utf-8")
        os.replace(new, self.path)

    def close(self) -> None:
        """Remove the record: the export is complete."""
        self.path.unlink(missing_ok=True)
