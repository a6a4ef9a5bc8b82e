"""The trained transforms besides blocks, by name, and the names under which their methods were published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orthotune.errors import ConfigError, nearest
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.givens import Givens
from orthotune.rotation.hyperplanes import Hyperplanes
from orthotune.rotation.pairs import PairedPlanes
from orthotune.rotation.reflections import Reflections
from orthotune.rotation.stages import Stages
from orthotune.rotation.subspace import Subspace

FAMILY: Mapping[str, type[FamilyTransform]] = {
    kind.name: kind for kind in (Reflections, Stages, PairedPlanes, Givens, Subspace, Hyperplanes)
}

#: published name -> name of the transform, and the fields that the publication means
PUBLISHED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "oft": ("blocks", {}),
    "hra": ("reflections", {}),
    "boft": ("butterfly", {"magnitude": True}),
    "road": ("planes", {"side": "out", "variant": "road_1"}),
    "goft": ("givens", {}),
    "psoft": ("subspace", {"variant": "psoft"}),
    "ether": ("hyperplane", {"variant": "ether", "init_weights": False}),
    "ether+": ("hyperplane", {"variant": "ether+"}),
}


def family_of(name: str) -> type[FamilyTransform] | None:
    """The transform of a name; None for blocks.

    Raises:
        ConfigError: there is no such transform.

    Example:
        >>> family_of("blocks") is None, family_of("reflections").__name__
        (True, 'Reflections')
    """
    if name == "blocks":
        return None
    if name not in FAMILY:
        known = ["blocks", *FAMILY, *PUBLISHED]
        near = nearest(str(name), known)
        raise ConfigError(
            f"transform={name!r}", needed=f"one of {', '.join(known)}",
            do=f"Did you mean {near[0]}?" if near else None,
        )  # fmt: skip
    return FAMILY[name]


def refuse_contradictions(fields: Mapping[str, Any], kind: type[FamilyTransform] | None) -> None:
    """Refuse fields of a config that mean nothing for a transform.

    Args:
        fields: of a config.
        kind: the transform, None for blocks.

    Raises:
        ConfigError: names the field and the transform.

    Example:
        >>> refuse_contradictions({"transform": "reflections", "r": 4}, FAMILY["reflections"])
    """
    name = fields.get("transform") or "blocks"

    def refuse(field: str, needed: str) -> None:
        raise ConfigError(f"{field}={fields[field]!r} with transform='{name}'", needed=needed, do=f"Omit {field}")

    if kind is None:
        for field in ("variant", "factors"):
            if fields.get(field):
                refuse(field, "a transform that has it: " + ", ".join(FAMILY))
        return
    for field in ("coft", "block_share", "use_cayley_neumann", "scaled", "module_dropout"):
        if fields.get(field):
            refuse(field, "transform='blocks', whose skew-symmetric blocks it is about")
    if kind.ranked and fields.get("oft_block_size"):
        refuse("oft_block_size", "r, its rank: it has no blocks")
    if fields.get("variant") and fields["variant"] not in kind.variants:
        refuse("variant", f"one of {', '.join(map(repr, kind.variants))}")
    factors = fields.get("factors") or 0
    if factors and (not kind.default_factors or not 1 <= factors <= 30):
        refuse("factors", "1 to 30 stages" if kind.default_factors else "a transform with stages")
