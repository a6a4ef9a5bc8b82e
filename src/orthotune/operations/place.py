"""Refuses an output that would take the place of the adapter."""

from __future__ import annotations

from pathlib import Path

from orthotune.errors import OutputError


def refuse_place_of_adapter(out: Path, adapter: Path) -> None:
    """Refuse an output that is the adapter, or a folder that holds it: it may exist only once.

    Raises:
        OutputError: writing ``out`` would remove the adapter.

    Example:
        >>> refuse_place_of_adapter(Path("merged"), Path("runs/demo/adapter"))
    """
    place, found = out.resolve(), adapter.resolve()
    if place == found or place in found.parents:
        got = "the adapter itself" if place == found else "a folder that holds the adapter"
        raise OutputError(f"OUT {out}", got=got, do="Name another place: the adapter would be lost")
