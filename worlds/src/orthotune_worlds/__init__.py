"""The models, texts and images of orthotune's built-in worlds: data, and nothing else that runs.

``orthotune.worlds`` reads them; ``NOTICE`` in each folder names where they come from and under which licence.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

#: The folders that are here.
WORLDS: tuple[str, ...] = ("text", "image")


def path(world: str) -> Path:
    """The folder of one world's files.

    Args:
        world: one of ``WORLDS``.

    Raises:
        ValueError: there is no such world.
        FileNotFoundError: the package is not unpacked in a folder, so libraries cannot open its files.

    Example:
        >>> sorted(entry.name for entry in path("text").iterdir())
        ['NOTICE', 'card.json', 'data', 'model']
    """
    if world not in WORLDS:
        raise ValueError(f"world {world!r}: needed is one of {', '.join(WORLDS)}")
    folder = files(__name__) / world
    if not isinstance(folder, Path) or not folder.is_dir():
        raise FileNotFoundError(f"orthotune_worlds holds no folder {world}: install orthotune-worlds again, unpacked")
    return folder
