"""Config fields that stock PEFT does not have, with the values that it assumes. Shared by config and reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: ``peft_type`` of adapters that stock PEFT must not load: it stops at the unknown type
ORTHOTUNE_TYPE = "ORTHOTUNE"

#: version of the fields below
FORMAT_VERSION = 1

#: field of orthotune -> the value that stock PEFT assumes; it cannot express any other value
ASSUMED: dict[str, Any] = {
    "side": "in",
    "conv": "kernel",
    "magnitude": False,
    "scaled": False,
    "rank_pattern": {},
    "block_size_pattern": {},
    "target_parameters": None,
    "layer_settings": {},
    "neumann_series": "current",
    "transform": "blocks",
    "factors": 0,
    "variant": "",
    "needs_orthotune_for": None,
}


def beyond_stock(config: Mapping[str, Any]) -> list[str]:
    """The fields and layer kinds that stock PEFT cannot express; empty if stock PEFT can load the adapter.

    Example:
        >>> beyond_stock({"side": "out", "scaled": False})
        ['side']
    """
    fields = [name for name, stock in ASSUMED.items() if (config.get(name) or stock) != stock]
    kinds = [str(kind) for kind in config.get("needs_orthotune_for") or []]
    return [name for name in fields if name != "needs_orthotune_for"] + kinds
