"""``nn.MultiheadAttention``: query, key, value and output projections each get a rotation of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.base import OFTLayer
from orthotune.layers.linear import Linear
from orthotune.layers.mixed_batch import refuse_mixed_batch
from orthotune.layers.settings import LayerSettings
from orthotune.layers.transparent import Transparent


class MultiheadAttention(Transparent):
    """Parts ``q``, ``k``, ``v`` (rows of the packed ``in_proj_weight``, or the separate weights) and ``out``.

    Called as the base is: ``(query, key, value, ...) -> (output, weights)``. Files hold ``oft_R.q.weight`` and so on.
    """

    beyond_peft = "nn.MultiheadAttention"

    def __init__(self, base_layer: nn.Module, adapter_name: str, settings: LayerSettings) -> None:
        if isinstance(base_layer.out_proj, OFTLayer):
            raise UnsupportedLayerError(
                f"layer '{settings.layer}'",
                got="an adapter on its out_proj alone",
                needed="adapters on the whole attention, or on out_proj, not both",
                do="Give both adapters the same target",
            )
        super().__init__(base_layer, adapter_name, settings)

    @property
    def weight(self) -> Tensor:
        """The packed or the query projection, for device and dtype."""
        return next(iter(self.base_parameters().values()))

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

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        as_base = refuse_mixed_batch(self, kwargs)
        adapters = [] if as_base else self.adapters_in_use()
        if not adapters:
            return self.base_layer(*args, **kwargs)
        turned = {name: W.to(self.weight.dtype) for name, W in self.turned(adapters).items()}
        return functional_call(self.base_layer, turned, args, kwargs)


class AttentionOutput(Linear):
    """The ``out_proj`` of an ``nn.MultiheadAttention`` targeted alone: the attention reads its ``weight`` only."""

    beyond_peft = "the output projection of nn.MultiheadAttention"

    @property
    def weight(self) -> Tensor:
        """The turned weight, differentiable."""
        adapters = self.adapters_in_use()
        base = self.get_base_layer().weight
        return self.turned(adapters)["weight"].to(base.dtype) if adapters else base
