"""Samples that a run generated at several steps: one frame per step, with embedded images."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orthotune.report.heat_map import is_number

#: most steps on the slider
MOST_STEPS = 12
#: most bytes of images in one page; the images of later prompts and seeds are skipped
MOST_BYTES = 24 * 2**20
SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: widest image, in pixels, that is enlarged so that single pixels can be seen
SMALL = 96


def frames(samples: Sequence[Mapping[str, Any]], folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The samples that have a step, one frame per step.

    Args:
        samples: the entries of ``samples.json``.
        folder: of the run. Files outside it are not read, nor files that are not PNG.

    Returns:
        The frames, and the number of skipped samples. A frame has ``step`` and ``groups``, one per prompt: ``prompt``
        and ``items`` with ``seed`` and either ``text`` or ``image``, a data URI, and ``small``.
    """
    rows = [sample for sample in samples if isinstance(sample, Mapping) and is_number(sample.get("step"))]
    steps = sorted({int(row["step"]) for row in rows})
    last = max(1, min(MOST_STEPS, len(steps)) - 1)
    chosen = sorted({steps[round(i * (len(steps) - 1) / last)] for i in range(min(MOST_STEPS, len(steps)))})
    budget = MOST_BYTES // max(1, len(chosen))
    kept, skipped = [], 0
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
        kept.append({"step": step, "groups": [{"prompt": key, "items": items} for key, items in groups.items()]})
    return [frame for frame in kept if frame["groups"]], skipped


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
    """The content of a PNG file inside ``folder``; None for any other path, so that a record cannot name other files.

    Args:
        folder: the only folder that is read from.
        name: path relative to the folder, as a record gives it; may be any value.

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
    """A PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")
