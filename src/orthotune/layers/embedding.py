"""Embeddings: the embedding dimension turns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.errors import MergeError
from orthotune.kernels.rotate import rotate
from orthotune.kernels.turn_weight import Step
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import mixed_batch


class Embedding(OFTLayer):
    """``nn.Embedding``: ``E' = E R`` along the embedding dimension, PEFT's meaning since 0.19.

    Shapes: tokens ``(...)`` -> ``(..., dim)``. Magnitude scales the embedding dimensions. Turning the rows would mix
    tokens and is refused.
    """

    container = "oft_embedding_R"
    sides = ("in",)

    @staticmethod
    def _output_count(shape: torch.Size) -> int:
        return shape[-1]

    def steps(self, part: str, adapters: list[str], whole: bool = False) -> list[Step]:
        steps = []
        for name in adapters:
            steps.append(Step("columns", self.rotations(name)[part](whole)))
            if (scale := self.magnitude(name)) is not None:
                steps.append(Step("scale_columns", scale))
        return steps

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        batch = mixed_batch(self, kwargs, tokens)
        adapters = self.adapters_in_use()  # first: it takes a merge out of the base when adapters are disabled
        y = self.base_layer(tokens, *args, **kwargs)
        if batch is not None:
            here = [name for name in batch.rows if self.rotations(name)]
            y = batch.rotated(self, y, here)
            return batch.scaled(self, y, [name for name in here if name in self.oft_magnitude])
        for name in adapters:
            y = rotate(y, self.rotations(name)[""]())
            scale = self.magnitude(name)
            y = y if scale is None else y * scale.to(y.dtype)
        return y

    def check_mergeable(self, adapters: list[str]) -> None:
        """Refuse what changes norms where the base clips the rows that it looks up.

        Raises:
            MergeError: the embedding has ``max_norm``, and an adapter has a magnitude or is not a rotation.
        """
        longer = [
            n for n in adapters
            if n in self.oft_magnitude or not self.oft_settings[n].spec.exact or self.strength(n).kind != "geodesic"
        ]  # fmt: skip
        if longer and self.get_base_layer().max_norm is not None:
            raise MergeError(
                f"merging {longer} into embedding '{self.oft_settings[longer[0]].layer}'",
                got=f"max_norm={self.get_base_layer().max_norm}, which would clip the rows that the adapter lengthens",
                do="Keep the adapter un-merged, or set max_norm to None first",
            )
