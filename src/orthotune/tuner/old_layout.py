"""Adapter folders of PEFT before 0.16, whose config and tensors mean other things: both are translated when loaded.

0.8 to 0.13 turned the outputs by ``r`` blocks (``oft_r``); 0.14 and 0.15 turned the inputs and scaled the outputs
(``oft_r``, ``oft_s``). Source: ``tuners/oft`` of these versions.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

OldLayout = Literal["0.8", "0.14"]


def old_layout(fields: Mapping[str, Any]) -> OldLayout | None:
    """Which old layout a saved config describes: the first version that wrote it, or None for a present one.

    Example:
        >>> old_layout({"peft_type": "OFT", "r": 4})
        '0.8'
    """
    # 0.8 knew no block size, 0.15 no series; every later version writes all its fields.
    if fields.get("peft_type") != "OFT" or "use_cayley_neumann" in fields:
        return None
    return "0.14" if "oft_block_size" in fields else "0.8"


def translated(fields: Mapping[str, Any], layout: OldLayout) -> dict[str, Any]:
    """The fields of the present config that mean what the old ones did; the numbers are translated with them.

    Example:
        >>> translated({"peft_type": "OFT", "r": 4}, "0.8")["side"]
        'out'
    """
    new = {**fields, "use_cayley_neumann": False, "oft_block_size": fields.get("oft_block_size") or 0}
    if layout == "0.8":
        new["side"] = "out"
    else:
        new["magnitude"] = True
        new.pop("rank_pattern", None)  # it stood in the file and was never applied
    if fields.get("coft"):
        new["coft"] = False
        warnings.warn(
            "The adapter was trained within a ball (coft) of another shape than today's. It is loaded as it was used; "
            "training it further would not keep it within that ball.",
            stacklevel=4,
        )
    return new
