"""Embeddings: the embedding dimension turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.errors import MergeError
from orthotune.kernels.rotate import rotate, rotate_stack
from orthotune.layers.base import OFTLayer, refuse_mixed_batch


class Embedding(OFTLayer):
    """``nn.Embedding``: ``E' = E R`` along the embedding dimension, PEFT's meaning since 0.19.

    Shapes: tokens ``(...)`` -> ``(..., dim)``. Magnitude scales the embedding dimensions. Turning the rows would mix
    tokens and is refused.
    """

    container = "oft_embedding_R"
    sides = ("in",)

    @staticmethod
    def _output_count(matrix: Tensor) -> int:
        return matrix.shape[-1]

    def _turn(self, part: str, W: Tensor, adapters: list[str]) -> Tensor:
        W = W.to(torch.promote_types(W.dtype, torch.float32))
        for name in adapters:
            W = rotate_stack(W, self.rotations(name)[part]())
            scale = self.magnitude(name)
            W = W if scale is None else W * scale
        return W

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        refuse_mixed_batch(kwargs)
        y = self.base_layer(tokens, *args, **kwargs)
        for name in self.adapters_in_use():
            y = rotate(y, self.rotations(name)[""]())
            scale = self.magnitude(name)
            y = y if scale is None else y * scale.to(y.dtype)
        return y

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As for every layer; refused when the base rewrites its rows during lookup, which a rotation cannot follow.

        Raises:
            MergeError: the embedding has ``max_norm``, and a magnitude changes norms.
        """
        if self.get_base_layer().max_norm is not None and len(self.oft_magnitude):
            raise MergeError(
                f"merging a magnitude into embedding '{next(iter(self.oft_settings.values())).layer}'",
                got=f"max_norm={self.get_base_layer().max_norm}, which would clip the scaled rows",
                do="Keep the adapter un-merged, or set max_norm to None first",
            )
        super().merge(safe_merge, adapter_names)
