"""Wrappers that other modules read attributes of."""

from __future__ import annotations

from typing import Any

from orthotune.layers.base import OFTLayer


class Transparent(OFTLayer):
    """A layer whose unknown attributes are those of the module it wraps, as ``self_attn.num_heads``."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":  # not set yet, or being unpickled
                raise
            return getattr(self.base_layer, name)
