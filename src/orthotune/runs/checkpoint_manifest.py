"""What a checkpoint holds, by checksum: written last, so that one that was cut off or altered is known as such."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

from orthotune.errors import OutputError
from orthotune.files.atomic import flush
from orthotune.files.json_file import read_json, write_json

MANIFEST, VERSION = "manifest.json", 1
#: Bytes of a file that are held at once.
CHUNK = 1 << 22


def seal(folder: Path, step: int) -> None:
    """Bring every file of a checkpoint to the disk, then write ``manifest.json``: step, and sha256 and size by file.

    Raises:
        OSError, OutputError: a file cannot be read, or the manifest not written.
    """
    flush(folder)
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST):
        files[path.relative_to(folder).as_posix()] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    content: dict[str, Any] = {"version": VERSION, "step": step, "files": files}
    write_json(folder / MANIFEST, {**content, "sha256": _digest(content)})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, unaltered; its files are not looked at.

    Raises:
        OutputError: there is no manifest, or a file differs from it; names the file.
    """
    if not (folder / MANIFEST).is_file():
        raise OutputError(f"checkpoint {folder}", got=f"no {MANIFEST}, so it was cut off in writing")
    try:
        found = read_json(folder / MANIFEST)
        kept = {name: value for name, value in found.items() if name != "sha256"}
        complete = (
            found["sha256"] == _digest(kept) and isinstance(kept["step"], int) and isinstance(kept["files"], dict)
        )
    except (ValueError, KeyError, TypeError) as fault:
        raise OutputError(f"checkpoint {folder}", got=f"a {MANIFEST} that cannot be read") from fault
    if not complete:
        raise OutputError(f"checkpoint {folder}", got=f"a {MANIFEST} that was altered")
    return kept


def check(folder: Path) -> int:
    """The step of a checkpoint whose files are all as they were written.

    Raises:
        OutputError: a file is missing, shorter, longer or altered; names it.

    Example:
        >>> check(Path("runs/demo/checkpoints/checkpoint-50"))  # doctest: +SKIP
        50
    """
    manifest = read_manifest(folder)
    for name, recorded in manifest["files"].items():
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise OutputError(f"checkpoint {folder}", got=f"the name {name!r}, which leads out of it")
        path = folder / inside
        try:
            size = path.stat().st_size
            if size != recorded["bytes"]:
                raise OutputError(f"checkpoint {folder}", got=f"{size} bytes in {name}", needed=f"{recorded['bytes']}")
            same = sha256_of(path) == recorded["sha256"]
        except (OSError, KeyError, TypeError) as fault:
            raise OutputError(f"checkpoint {folder}", got=f"no {name} that can be read") from fault
        if not same:
            raise OutputError(f"checkpoint {folder}", got=f"another checksum of {name} than when it was written")
    return int(manifest["step"])


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
