"""Refuse an output that would overwrite the adapter."""

from __future__ import annotations

from pathlib import Path

from orthotune.errors import OutputError


def refuse_place_of_adapter(out: Path, adapter: Path) -> None:
    """Refuse an output path that is the adapter itself, or a folder that contains the adapter.

    Raises:
        OutputError: writing ``out`` would remove the adapter.

    Example:
        >>> refuse_place_of_adapter(Path("merged"), Path("runs/demo/adapter"))
    """
    target, found = out.resolve(), adapter.resolve()
    if target == found or target in found.parents:
        got = "the adapter itself" if target == found else "a folder that contains the adapter"
        raise OutputError(f"OUT {out}", got=got, do="Choose another output: the adapter would be overwritten")
