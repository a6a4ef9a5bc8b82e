"""What stock PEFT has no field for, and how a file says so; the config writes by it, the reader reads by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: type of adapters that stock PEFT must not load: it knows no such type and stops
ORTHOTUNE_TYPE = "ORTHOTUNE"

#: version of the fields below
FORMAT_VERSION = 1

#: our fields with the value that stock PEFT assumes; any other value is beyond it
ASSUMED: dict[str, Any] = {
    "side": "in",
    "magnitude": False,
    "scaled": False,
    "rank_pattern": {},
    "block_size_pattern": {},
    "target_parameters": None,
    "layer_settings": {},
    "neumann_series": "current",
    "needs_orthotune_for": None,
}


def beyond_stock(config: Mapping[str, Any]) -> list[str]:
    """The fields and layer kinds because of which stock PEFT cannot express the adapter; empty if it can.

    Example:
        >>> beyond_stock({"side": "out", "scaled": False})
        ['side']
    """
    fields = [name for name, stock in ASSUMED.items() if (config.get(name) or stock) != stock]
    kinds = [str(kind) for kind in config.get("needs_orthotune_for") or []]
    return [name for name in fields if name != "needs_orthotune_for"] + kinds
