"""The adapter that a verb reads is not written over, whatever ``--overwrite`` says: it may exist only once."""

from __future__ import annotations

from pathlib import Path


def refuse_place_of_adapter(out: Path, adapter: Path) -> None:
    """Refuse an output that is the adapter, or a folder that holds it.

    Raises:
        OutputError: writing ``out`` would remove the adapter.

    Example:
        >>> refuse_place_of_adapter(Path("merged"), Path("runs/demo/adapter"))
    """
    from orthotune.errors import OutputError

    place, found = out.resolve(), adapter.resolve()
    if place == found or place in found.parents:
        got = "the adapter itself" if place == found else "a folder that holds the adapter"
        raise OutputError(f"OUT {out}", got=got, do="Name another place: the adapter would be lost")
