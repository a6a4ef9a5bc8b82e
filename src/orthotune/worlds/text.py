"""The text world: a small pretrained language model, prose for it to learn and the code it may forget.

``old_*`` splits are code like that of its pretraining, ``new_*`` splits are prose that it never saw. ``old_train``
alone is code that it was pretrained on: for ``keep`` of the recipe to hold on to, not to be measured on.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from orthotune.errors import DataError, nearest
from orthotune.files.installed_worlds import need, world_folder
from orthotune.files.json_file import json_object

#: The folder that ``from_pretrained`` reads, and the model card.
MODEL: Path
CARD: Path
SPLITS: tuple[str, ...] = ("new_train", "new_validation", "new_test", "old_train", "old_validation", "old_test")


def load_split(name: str) -> list[dict[str, str]]:
    """The documents of one of ``SPLITS``, each with its ``text`` and its ``source``.

    Raises:
        DataError: there is no such split, or its file is not installed.

    Example:
        >>> sorted(load_split("new_test")[0])
        ['source', 'text']
    """
    if name not in SPLITS:
        close = nearest(name, SPLITS, count=1)
        raise DataError(
            f"split {name!r} of the text world",
            needed=f"one of {', '.join(SPLITS)}",
            do=f"Did you mean {close[0]!r}?" if close else None,
        )
    path = need(world_folder("text") / "data" / f"{name}.jsonl.gz", f"split {name!r} of the text world")
    return [json_object(row) for row in gzip.decompress(path.read_bytes()).decode().splitlines()]


def __getattr__(name: str) -> Path:
    """``MODEL`` and ``CARD`` are looked up when they are used: importing this module needs no file of the world."""
    if name in ("MODEL", "CARD"):
        return world_folder("text") / {"MODEL": "model", "CARD": "card.json"}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
