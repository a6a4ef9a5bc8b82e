"""The text world: a small pretrained language model, prose for it to learn and the code it may forget.

``old_*`` splits are code like that of its pretraining, ``new_*`` splits are prose that it never saw. ``old_train``
alone is code that it was pretrained on: for ``keep`` of the recipe to hold on to, not to be measured on.
"""

from __future__ import annotations

import gzip
from pathlib import Path

from orthotune.errors import DataError, nearest
from orthotune.files.json_file import json_object

_HOME = Path(__file__).parent / "text"

MODEL: Path = _HOME / "model"
CARD: Path = _HOME / "card.json"
SPLITS: tuple[str, ...] = ("new_train", "new_validation", "new_test", "old_train", "old_validation", "old_test")


def load_split(name: str) -> list[dict[str, str]]:
    """The documents of one of ``SPLITS``, each with its ``text`` and its ``source``.

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
    path = _HOME / "data" / f"{name}.jsonl.gz"
    if not path.is_file():
        raise DataError(
            f"split {name!r} of the text world",
            got=f"no file {path.name} in the installed package",
            do="Reinstall orthotune, or build the world again with python -m orthotune.worlds.build_text",
        )
    return [json_object(row) for row in gzip.decompress(path.read_bytes()).decode().splitlines()]
