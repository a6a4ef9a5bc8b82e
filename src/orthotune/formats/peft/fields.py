"""Translate the fields of ``OFTConfig`` and ``adapter_config.json`` to a ``RotationSpec`` and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from orthotune.errors import ConfigError
from orthotune.formats.peft.beyond_stock import ORTHOTUNE_TYPE
from orthotune.formats.peft.config_field import integer, number
from orthotune.formats.peft.layer_settings import MOST_TERMS, SERIES, series_of, with_layer_settings
from orthotune.rotation.family_registry import family_of
from orthotune.rotation.spec import Map, RotationSpec


def spec_of_fields(fields: Mapping[str, Any], layer: str | None = None) -> RotationSpec:
    """The spec that the fields of a config give a layer.

    Args:
        fields: of a file or a config; unknown fields are ignored. With ``r`` the block size is 0.
        layer: name of the layer whose ``layer_settings`` are applied; None for the settings of all layers.

    Raises:
        AdapterFileError: a field that must be a number is not one.
        ConfigError: there is no such transform or variant.

    Source: PEFT ``tuners/oft/config.py``, since 0.16; the older polynomial where no version, or one before 0.18, wrote
    the file.

    Example:
        >>> spec_of_fields({"peft_type": "OFT", "oft_block_size": 8, "use_cayley_neumann": True}).map
        'neumann_legacy'
    """
    transform = fields.get("transform") or "blocks"
    kind = family_of(transform)
    spec = RotationSpec(
        block_size=0 if fields.get("r") else fields.get("oft_block_size") or 0,
        side="out" if fields.get("side") == "out" else "in",
        map=map_of_fields(fields),
        terms=integer(fields, "num_cayley_neumann_terms", 5, MOST_TERMS),
        shared=bool(fields.get("block_share")),
        scaled=bool(fields.get("scaled")),
        eps=number(fields, "eps", 6e-5) if fields.get("coft") else None,
        dropout=fields.get("module_dropout") or 0.0,
        magnitude=bool(fields.get("magnitude")),
        transform=transform,
        rank=integer(fields, "r", kind.default_rank) if kind is not None and kind.ranked else 0,
        factors=integer(fields, "factors", 0) or 1,
        variant=str(fields.get("variant") or ""),
        conv="channels" if fields.get("conv") == "channels" else "kernel",
    )
    own = {} if layer is None else (fields.get("layer_settings") or {}).get(layer, {})
    found = with_layer_settings(spec, own, _series(fields))
    kind = family_of(found.transform)
    if kind is not None and found.variant not in (*kind.variants, ""):
        raise ConfigError(
            f"variant={ascii(found.variant)[:80]} with transform='{found.transform}'",
            got=f"layer_settings of layer '{layer}'" if own else None,
            needed=f"one of {', '.join(map(repr, kind.variants))}",
        )  # fmt: skip
    return found


def map_of_fields(fields: Mapping[str, Any]) -> Map:
    """The map that the fields of a config give, without ``layer_settings``.

    Example:
        >>> map_of_fields({"peft_type": "OFT", "peft_version": "0.18.0"})
        'neumann'
    """
    # PEFT uses the series by default, orthotune the exact map.
    neumann = fields.get("use_cayley_neumann", fields.get("peft_type") != ORTHOTUNE_TYPE)
    return SERIES[_series(fields)] if neumann else "exact"


def fields_of_spec(spec: RotationSpec) -> dict[str, Any]:
    """The fields that give all layers a spec; ``eps`` only with COFT.

    Example:
        >>> fields_of_spec(RotationSpec(block_size=8, shared=True))["block_share"]
        True
    """
    radius: dict[str, Any] = {} if spec.eps is None else {"eps": spec.eps}
    if spec.transform != "blocks":
        radius |= {"transform": spec.transform, "variant": spec.variant}
        radius |= {"factors": spec.factors} if spec.transform == "butterfly" else {}
        radius |= {"r": spec.rank} if spec.rank else {}
    radius |= {"conv": spec.conv} if spec.conv != "kernel" else {}
    return radius | {
        "oft_block_size": spec.block_size,
        "side": spec.side,
        "use_cayley_neumann": not spec.exact,
        "neumann_series": series_of(spec),
        "num_cayley_neumann_terms": spec.terms,
        "block_share": spec.shared,
        "scaled": spec.scaled,
        "coft": spec.eps is not None,
        "module_dropout": spec.dropout,
        "magnitude": spec.magnitude,
    }


def _series(fields: Mapping[str, Any]) -> str:
    series = fields.get("neumann_series")
    if series is None:
        # PEFT records its version since 0.18, the version that changed the series.
        found = re.match(r"(\d+)\.(\d+)", str(fields.get("peft_version") or ""))
        return "current" if found and (int(found[1]), int(found[2])) >= (0, 18) else "legacy"
    return "legacy" if series == "legacy" else "current"
