"""``nn.MultiheadAttention``: query, key, value and output projections each get a rotation of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.base import OFTLayer
from orthotune.layers.linear import Linear
from orthotune.layers.settings import LayerSettings


class MultiheadAttention(OFTLayer):
    """Parts ``q``, ``k``, ``v`` (rows of the packed ``in_proj_weight``, or the separate weights) and ``out``.

    Called as the base is: ``(query, key, value, ...) -> (output, weights)``. Files hold ``oft_R.q.weight`` and so on.
    """

    beyond_peft = "nn.MultiheadAttention"

    def prepare(self, settings: LayerSettings) -> None:
        if isinstance(self.base_layer.out_proj, OFTLayer):
            raise UnsupportedLayerError(
                f"layer '{settings.layer}'",
                got="an adapter on its out_proj alone",
                needed="adapters on the entire attention, or on out_proj, not both",
                do="Give both adapters the same target",
            )

    @property
    def weight(self) -> Tensor:
        """The packed or the query projection, as the layer computes with it."""
        return self.seen(next(iter(self.base_parameters())))

    @property
    def out_proj(self) -> Any:
        """The output projection, whose weight is the one that the layer computes with."""
        base = self.get_base_layer().out_proj
        return _OutputProjection(self, base) if self.in_use.adapters else base

    @property
    def bias(self) -> Tensor | None:
        """The packed bias of query, key and value."""
        return self.get_base_layer().in_proj_bias

    def base_parameters(self) -> dict[str, nn.Parameter]:
        base = self.get_base_layer()
        if base._qkv_same_embed_dim:
            return {"in_proj_weight": base.in_proj_weight, "out_proj.weight": base.out_proj.weight}
        return {
            "q_proj_weight": base.q_proj_weight,
            "k_proj_weight": base.k_proj_weight,
            "v_proj_weight": base.v_proj_weight,
            "out_proj.weight": base.out_proj.weight,
        }

    def matrices(self) -> dict[str, Tensor]:
        *projections, out = self.base_parameters().values()
        parts = projections[0].chunk(3) if len(projections) == 1 else projections
        return {**dict(zip("qkv", parts, strict=True)), "out": out}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        names = list(self.base_parameters())
        parts = [matrices["q"], matrices["k"], matrices["v"]]
        projections = [torch.cat(parts)] if len(names) == 2 else parts
        return dict(zip(names, [*projections, matrices["out"]], strict=True))

    def no_lora_form(self, added: bool = False) -> str:
        return "an nn.MultiheadAttention, which has several weights"

    def opaque(self) -> str | None:
        """Nothing is assumed of its forward: the base is always called with the adapted weights."""
        return None

    def __getattr__(self, name: str) -> Any:
        if name in ("_qkv_same_embed_dim", "_reset_parameters"):  # read by torch's own encoder layers
            return getattr(self.get_base_layer(), name)
        return super().__getattr__(name)


class _OutputProjection(nn.Module):
    """``out_proj`` of an adapted attention, for code that reads its weight past the attention's forward."""

    def __init__(self, layer: MultiheadAttention, base: nn.Module) -> None:
        super().__init__()
        self.__dict__.update(layer=layer, base=base)  # they are no children of it

    @property
    def weight(self) -> Tensor:
        """The weight that the attention computes with."""
        return self.layer.seen("out_proj.weight")

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.base.bias)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["base"], name)


class AttentionOutput(Linear):
    """The ``out_proj`` of an ``nn.MultiheadAttention`` targeted alone: the attention reads its ``weight`` only."""

    beyond_peft = "the output projection of nn.MultiheadAttention"

    def no_lora_form(self, added: bool = False) -> str:
        return "the out_proj of an nn.MultiheadAttention, which reads the weight of the base past a LoRA around it"
