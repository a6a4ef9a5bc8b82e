"""The transform that a run trains, with its own settings, as options of its config; contradictions in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orthotune.errors import ConfigError
from orthotune.rotation.family_registry import PUBLISHED, family_of, refuse_contradictions

#: the names of block rotations, which are trained where no transform is chosen
BLOCKS = ("blocks", "oft")


def transform_options(transform: str, variant: str | None, factors: int | None) -> dict[str, Any]:
    """The fields of ``OFTConfig`` for a transform; none for blocks, which are its default.

    Args:
        transform: name of the transform, here or in its publication.
        variant, factors: settings of transforms that have them; None leaves them open.

    Example:
        >>> transform_options("hra", None, None), transform_options("blocks", None, None)
        ({'transform': 'hra'}, {})
    """
    given = {"transform": None if transform in BLOCKS else transform, "variant": variant, "factors": factors}
    return {name: value for name, value in given.items() if value is not None}


def transform_fault(fields: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The setting that contradicts the transform, the contradiction, and what to do; None without one.

    Args:
        fields: ``transform``, ``variant``, ``factors``, ``block_size`` and ``block_rate`` of a run, and its further
            options of rotations.

    Example:
        >>> transform_fault({"transform": "hra", "block_size": 32})[1]
        "block_size=32 with transform='reflections' needs r, its rank: it has no blocks"
        >>> transform_fault({"transform": "hra"}) is None
        True
    """
    name, meant = PUBLISHED.get(str(fields["transform"]), (str(fields["transform"]), {}))
    given = {**fields, "transform": name, "oft_block_size": fields.get("block_size")}
    try:
        kind = family_of(name)
    except ConfigError as error:
        return "rotation", f"rotation.{error.given}, which is not {error.needed}", (error.do or "Choose one of them").rstrip("?")
    for key in ("side", "variant", "init_weights"):
        if key in meant and given.get(key, meant[key]) not in (meant[key], None):
            shown = f"{key}={given[key]!r} with transform='{fields['transform']}', which means {key}={meant[key]!r}"
            return key, shown, f"Leave {key} out, or choose transform={name}"
    if kind is not None and fields.get("block_rate"):
        shown = f"block_rate={fields['block_rate']:g} with transform='{name}' has no meaning: it is about blocks"
        return "block_rate", shown, "Leave block_rate out"
    try:
        refuse_contradictions(given, kind)
    except ConfigError as error:
        key = error.given.partition("=")[0].removeprefix("oft_")
        return key, f"{error.given.removeprefix('oft_')} needs {error.needed}", f"Leave {key} out"
    return None
