"""Data sets of the hub, by name."""

from __future__ import annotations

from typing import Any

from orthotune.errors import DataError


def load_split(source: str) -> Any:
    """The split of the hub's data set ``NAME`` or ``NAME:SPLIT`` (default ``train``), as ``datasets`` gives it.

    Raises:
        DataError: the hub has no such data set or split, or cannot be reached.

    Example:
        >>> load_split("owner/name:train").column_names  # doctest: +SKIP
        ['image', 'text']
    """
    import datasets

    name, _, split = source.partition(":")
    try:
        return datasets.load_dataset(name, split=split or "train")
    except Exception as fault:  # the hub client raises dozens of kinds: no network, no such name, gated, no such split
        raise DataError(
            f"data {source!r}",
            got=f"no such file or directory, and the hub answers: {str(fault).splitlines()[0]}",
            do="Check the path, or write the hub's name as OWNER/NAME or OWNER/NAME:SPLIT",
        ) from fault
