"""Data sets of the hub, by name."""

from __future__ import annotations

from typing import Any

from orthotune.errors import DataError, nearest


def load_split(source: str) -> Any:
    """One split of the hub's data set ``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIG:SPLIT``, as ``datasets`` gives it.

    Args:
        source: the name; without a split it is ``train``, without a config the only one that the set has.

    Raises:
        DataError: the hub has no such data set, config or split, or cannot be reached.

    Example:
        >>> load_split("owner/name:train").column_names  # doctest: +SKIP
        ['image', 'text']
    """
    import datasets

    name, *rest = source.split(":")
    config, split = (rest[0], rest[1]) if len(rest) > 1 else (None, rest[0] if rest else None)
    arguments = [name, config] if config else [name]
    try:
        return datasets.load_dataset(*arguments, split=split or "train")
    except Exception as fault:  # the hub client raises dozens of kinds: no network, no such name, gated, no such split
        raise DataError(
            f"data {source!r}",
            got=f"no such file or directory, and the hub answers: {str(fault).splitlines()[0]}",
            do=_advice(name, config, str(fault)),
        ) from fault


def _advice(name: str, config: str | None, fault: str) -> str:
    """Advice about a data set that cannot be loaded."""
    if config is None and "onfig name is missing" in fault:
        return f"Name one of its configs: {name}:CONFIG:SPLIT"
    if config is not None and "onfig" in fault and (close := nearest(config, fault.replace("'", " ").split(), count=2)):
        other = next((one.strip("[],") for one in close if one.strip("[],") != config), None)
        if other:
            return f"Did you mean {name}:{other}:SPLIT?"
    return "Check the path, or write the hub's name as OWNER/NAME, OWNER/NAME:SPLIT or OWNER/NAME:CONFIG:SPLIT"
