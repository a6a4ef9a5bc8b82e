"""What stock PEFT can express, and how a file says that it cannot."""

from __future__ import annotations

from typing import Any

from peft.utils import PeftType

from orthotune.formats.beyond_stock import ASSUMED, ORTHOTUNE_TYPE

#: never written: they say how a size was chosen, and a file holds the chosen sizes
UNWRITTEN = ("block_size_fallback", "alpha_pattern")


def file_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """The saved form of a config's fields: type ``OFT`` when stock PEFT means the same by it, else ``ORTHOTUNE``.

    Example:
        >>> file_fields({"peft_type": "OFT", "side": "out"})["peft_type"]
        'ORTHOTUNE'
    """
    fields = {k: v for k, v in fields.items() if k not in UNWRITTEN}
    beyond = {k: v for k, v in fields.items() if k in ASSUMED and (v or None) != (ASSUMED[k] or None)}
    fields = {k: v for k, v in fields.items() if k not in ASSUMED} | beyond
    fields["peft_type"] = ORTHOTUNE_TYPE if beyond else PeftType.OFT
    if not beyond:
        fields.pop("format_version", None)
    # A set has no order of its own, and the same config must give the same file.
    return {k: sorted(v) if isinstance(v, set) else v for k, v in fields.items()}
