"""What a run drew or wrote at several steps: one frame for each step, images inside the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orthotune.report.heat_map import is_number

#: steps that the slider has room for
MOST_STEPS = 12
#: bytes of images in one page; beyond, the images of later prompts and seeds are skipped
MOST_BYTES = 24 * 2**20
SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: pixels below which an image is enlarged, so that each of its pixels is seen
SMALL = 96


def frames(samples: Sequence[Mapping[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The samples that have a step, by step, and how many were skipped.

    A frame has ``step`` and ``groups``, one for each prompt: ``prompt`` and ``items`` with ``seed`` and either ``text``
    or ``image``, a data URI, and ``small``. Files are read from within ``folder`` only, and only if they are PNG.
    """
    rows = [sample for sample in samples if isinstance(sample, Mapping) and is_number(sample.get("step"))]
    steps = sorted({int(row["step"]) for row in rows})
    last = max(1, min(MOST_STEPS, len(steps)) - 1)
    chosen = sorted({steps[round(i * (len(steps) - 1) / last)] for i in range(min(MOST_STEPS, len(steps)))})
    budget = MOST_BYTES // max(1, len(chosen))
    found, skipped = [], 0
    for step in chosen:
        groups: dict[str, list[dict[str, Any]]] = {}
        used = 0
        for row in (row for row in rows if int(row["step"]) == step):
            item = _item(row, folder)
            size = len(item["image"] or item["text"]) if item else 0
            if item is None or used + size > budget:
                skipped += 1
                continue
            used += size
            groups.setdefault(str(row.get("prompt") or ""), []).append(item)
        found.append({"step": step, "groups": [{"prompt": key, "items": items} for key, items in groups.items()]})
    return [frame for frame in found if frame["groups"]], skipped


def _item(row: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    seed = row.get("seed")
    if isinstance(row.get("text"), str):
        return {"seed": seed, "text": row["text"], "image": None}
    content = png_inside(folder, row.get("file"))
    if content is None:
        return None
    width = int.from_bytes(content[16:20], "big")
    return {"seed": seed, "text": None, "image": data_uri(content), "small": width <= SMALL}


def png_inside(folder: Path, name: Any) -> bytes | None:
    """The PNG file of that name, if it lies within ``folder``; None otherwise: a record must not fetch other files.

    Example:
        >>> png_inside(Path("runs"), "../secret.png") is None
        True
    """
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file():
            return None
        content = path.read_bytes()
    except OSError:
        return None
    return content if content.startswith(SIGNATURE) else None


def data_uri(content: bytes) -> str:
    """A PNG file as an address that needs no network."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
