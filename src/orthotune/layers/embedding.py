"""Embeddings: the embedding dimension is rotated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import MergeError
from orthotune.kernels.rotate import rotate
from orthotune.kernels.rotate_weight import Step
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import mixed_batch
from orthotune.layers.plan import SIDES, Plan, opaque
from orthotune.rotation.family_registry import family_of
from orthotune.rotation.spec import RotationSpec


class Embedding(OFTLayer):
    """``nn.Embedding``: ``E' = E R`` along the embedding dimension, PEFT's meaning since 0.19.

    Shapes: tokens ``(...)`` -> ``(..., dim)``. Magnitude scales the embedding dimensions. Rotating the rows would mix
    tokens and is refused.
    """

    container = "oft_embedding_R"
    sides = ("in",)
    plain_forwards = (nn.Embedding.forward,)

    @staticmethod
    def output_count(shape: torch.Size) -> int:
        return shape[-1]

    def steps(self, part: str, adapters: list[str], every_block: bool = False) -> list[Step]:
        steps = []
        for name in adapters:
            steps.append(Step("columns", self.rotations(name)[part](every_block)))
            if (scale := self.magnitude(name)) is not None:
                steps.append(Step("scale_columns", scale))
        return steps

    def opaque(self) -> str | None:
        base = self.base_layer
        # Gemma, BART and others multiply what they look up by one number, which rotations do not mind.
        kind = type(base)
        scaled = kind.__name__.endswith("ScaledWordEmbedding") and kind.__module__.startswith("transformers.")
        return opaque(base, (kind.forward,) if scaled else self.plain_forwards)

    def own_path(self, x: Any) -> Plan:
        """What is looked up is rotated."""
        return SIDES

    @property
    def in_features(self) -> int:
        """The base's ``num_embeddings``."""
        return int(self.get_base_layer().num_embeddings)

    @property
    def out_features(self) -> int:
        """The base's ``embedding_dim``."""
        return int(self.get_base_layer().embedding_dim)

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:
        if kwargs and (batch := mixed_batch(self, kwargs, tokens)) is not None:
            here = [name for name in batch.rows if self.rotations(name)]
            if self.opaque() is not None:
                return batch.by_adapter(tokens, here, lambda names, rows: self._under(names, rows, args, kwargs))
            y = batch.rotated(self, self.base_layer(tokens, *args, **kwargs), here)
            return batch.scaled(self, y, [name for name in here if name in self.oft_magnitude])
        path = self.path(tokens)
        if path == "call":
            return self.call((tokens, *args), kwargs)
        y = self.base_layer(tokens, *args, **kwargs)
        for name in self.in_use.adapters if path == "sides" else ():
            y = rotate(y, self.oft_embedding_R[name]())
            scale = self.magnitude(name)
            y = y if scale is None else y * scale.to(y.dtype)
        return y

    def _under(self, names: list[str], rows: Tensor, args: Any, kwargs: Any) -> Any:
        return self.call((rows, *args), kwargs, tuple(names)) if names else self.base_layer(rows, *args, **kwargs)

    def no_lora_form(self, added: bool = False) -> str:
        return "an embedding, for which a LoRA has other factors, under other names, than for a linear layer"

    def check_mergeable(self, adapters: list[str]) -> None:
        """Refuse what changes norms where the base clips the rows that it looks up.

        Raises:
            MergeError: the embedding has ``max_norm``, and an adapter has a magnitude or is not a rotation.
        """
        specs = {name: self.slots[name].settings for name in adapters}
        longer = [
            n for n in adapters
            if n in self.oft_magnitude or not _keeps_norms(specs[n].spec) or self.strength(n).kind != "geodesic"
        ]  # fmt: skip
        if longer and self.get_base_layer().max_norm is not None:
            raise MergeError(
                f"merging {longer} into embedding '{specs[longer[0]].layer}'",
                got=f"max_norm={self.get_base_layer().max_norm}, which would clip the rows that the adapter lengthens",
                do="Keep the adapter un-merged, or set max_norm to None first",
            )


def _keeps_norms(spec: RotationSpec) -> bool:
    kind = family_of(spec.transform)
    return spec.exact if kind is None else kind.orthogonal_of(spec)
