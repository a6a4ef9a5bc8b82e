"""The transform that a run trains, with its own settings, as options of its config; contradictions in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orthotune.errors import ConfigError, OrthotuneError
from orthotune.rotation.family_registry import PUBLISHED, family_of, refuse_contradictions
from orthotune.rotation.spec import RotationSpec

#: the names of block rotations, which are trained where no transform is chosen
BLOCKS = ("blocks", "oft")


def transform_options(transform: str, variant: str | None, factors: int | None) -> dict[str, Any]:
    """The fields of ``OFTConfig`` for a transform; none for blocks, which are its default.

    Args:
        transform: name of the transform, here or in its publication.
        variant: of transforms that have several; None leaves it open.
        factors: stages of a butterfly; None leaves them open.

    Example:
        >>> transform_options("hra", None, None), transform_options("blocks", None, None)
        ({'transform': 'hra'}, {})
    """
    given = {"transform": None if transform in BLOCKS else transform, "variant": variant, "factors": factors}
    return {name: value for name, value in given.items() if value is not None}


def rewinding_fault(options: Mapping[str, Any], rank: int | None) -> str | None:
    """Why the finished adapter of a run has no strengths to choose; None where it has.

    Args:
        options: of :func:`transform_options`.
        rank: of the transform, where it has one and it was given.

    Example:
        >>> rewinding_fault({"transform": "hra"}, 3), rewinding_fault({"transform": "boft"}, None)
        ('3 reflections', None)
    """
    name, meant = PUBLISHED.get(str(options.get("transform")), (str(options.get("transform", "blocks")), {}))
    kind = family_of(name)
    if kind is None:
        return None
    variant = str(options.get("variant") or meant.get("variant") or kind.variants[0])
    factors = int(options.get("factors") or kind.default_factors or 1)
    size, ranks = (0, rank or kind.default_rank) if kind.ranked else (2, 0)
    spec = RotationSpec(size, transform=name, variant=variant, factors=factors, rank=ranks)
    if kind.powers_are_blocks(spec):
        return None
    features = max(spec.rank, 2 << factors)
    numbers = torch.zeros(kind.sizes(features, spec).shape)
    kind.start(spec, numbers, identity=not spec.rank % 2)
    try:
        kind.numbers_at(spec, numbers, 0.5)
    except OrthotuneError as error:
        return error.got
    return None


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
        do = (error.do or "Choose one of them").rstrip("?")
        return "rotation", f"rotation.{error.given}, which is not {error.needed}", do
    for key in ("side", "init_weights"):
        if key in meant and given.get(key, meant[key]) != meant[key]:
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
