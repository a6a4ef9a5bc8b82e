"""The trainable parameter of a rotation and the rotation it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.kernels.from_parameters import RotationMap
from orthotune.layers.block_dropout import drop_blocks
from orthotune.layers.compiled_rotation import looked_up, numbered
from orthotune.layers.partial import Partial
from orthotune.layers.rotation_cache import RotationCache
from orthotune.layers.rotation_group import RotationGroup
from orthotune.layers.sharding import Exchanged, is_zero
from orthotune.rotation.blocks import BlockLayout
from orthotune.rotation.spec import RotationSpec
from orthotune.rotation.strength import FULL as WHOLE
from orthotune.rotation.strength import Strength


def _exporting() -> bool:
    # is_exporting() is true of everything that torch 2.9 to 2.11 compile; the flag behind it is not.
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else bool(flag)


class Rotation(Exchanged):
    """Packed skew blocks ``weight`` ``(copies * rows, b (b - 1) / 2)`` of one adapter at one matrix.

    ``copies`` is the number of matrices turned alike in shape (the experts of a mixture), 1 otherwise. The rotation is
    computed once per parameter version, in training too, see :class:`RotationCache`. A write through ``parameter.data``
    between two evaluations, with no training step, ``train()``, ``eval()`` or ``to()`` between them, is not seen.
    """

    spec: RotationSpec

    def __init__(
        self,
        layout: BlockLayout,
        map: RotationMap,
        copies: int = 1,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.map, self.copies, self.dropout = layout, map, copies, dropout
        self.cache: RotationCache[Tensor] = RotationCache()
        self.strength, self.partial = WHOLE, Partial()
        rows, elements = layout.shape
        self.weight = nn.Parameter(torch.zeros(copies * rows, elements, dtype=dtype or torch.float32))
        self.group: RotationGroup | None = None
        self.number = numbered(self)

    def forward(self, whole: bool = False) -> Tensor:
        """The blocks in float32 (float64 for float64 parameters), one row per stored block unless blocks are dropped.

        ``whole`` drops none, whatever the mode: a merge in the middle of training keeps every block.

        Shapes: ``(rows, b, b)``, or ``(copies, rows, b, b)`` when there is more than one copy.
        """
        R, dropping = self._rotation(), self.training and self.dropout > 0 and not whole
        if self.copies == 1 and not dropping:
            return R
        count, size = self.layout.block_count, self.layout.block_size
        if dropping:
            rows = R.view(self.copies, -1, size, size).expand(-1, count, -1, -1).reshape(-1, size, size)
            R = drop_blocks(rows, self.dropout, self.copies * count)
        return R if self.copies == 1 else R.view(self.copies, -1, size, size)

    def _rotation(self) -> Tensor:
        weight = self.weight
        trained = torch.is_grad_enabled() and weight.requires_grad
        if torch.compiler.is_compiling() and not trained and not _exporting():
            return looked_up(weight, self.number, self.layout.block_size)
        if trained and self.training and self.map.eps is not None:
            with torch.no_grad():  # COFT: the parameter itself stays within its ball
                # Through .data: projecting again changes no bit, so a module used twice in one forward must not
                # count as modified between its first use and the backward.
                weight.data.copy_(self._project(weight))
                self.write_shard()
        # Traced and inference tensors have no version to go by; a series has no backward from R alone.
        if torch.compiler.is_compiling() or weight.is_inference() or (trained and not self.map.exact):
            if trained:
                self.cache.doubt()  # what an earlier evaluation left there is about to be trained away
            return self._compute()
        return self._trained(self.known()) if trained else self.known()

    def known(self) -> Tensor:
        """The rotation without a gradient ``(copies * rows, b, b)``, from the cache if the parameter is what it was."""
        weight = self.weight
        if weight.is_inference():
            return self._compute()
        if is_zero(weight):  # put away and gathered without a new version
            self.doubt()
        R = self.cache.get(weight)
        return self._refresh() if R is None else R

    def _refresh(self) -> Tensor:
        peers = [self] if self.group is None or self.strength.partial else self.group.with_(self)
        # Computed in inference mode, they must still serve a later training step.
        with torch.inference_mode(False), torch.no_grad():
            if len(peers) == 1:
                R = self._compute()
                self.cache.put(self.weight, R, self.weight.detach().clone())
                return R
            rows = [peer.weight.shape[0] for peer in peers]
            numbers = torch.cat([peer.weight for peer in peers])
            found = dict(zip(peers, self.map(numbers).split(rows), strict=True))
            for (peer, R), v in zip(found.items(), numbers.split(rows), strict=True):
                peer.cache.put(peer.weight, R, v)
            return found[self]

    def _trained(self, R: Tensor) -> Tensor:
        if self.group is None or self.strength.partial or torch.distributed.is_initialized():
            return self._compute(R)  # several processes send each layer's gradient as soon as it is there
        if self.cache.trained is None:
            self.group.connect(self)
        found = self.cache.trained
        return self._compute(R) if found is None else found

    def _project(self, v: Tensor) -> Tensor:
        return self.map.within_ball(v.view(self.copies, -1, v.shape[-1])).view(v.shape)

    def set_strength(self, strength: Strength) -> None:
        """Turn by another part of the rotation from now on; what was computed for the present one is forgotten."""
        if strength != self.strength:
            self.strength = strength
            self.cache.clear()

    def _compute(self, known: Tensor | None = None) -> Tensor:
        return self.partial(self, known) if self.strength.partial else self.whole(known)

    def whole(self, known: Tensor | None = None) -> Tensor:
        """The rotation at strength 1 with its gradient; ``known`` is the result when only the gradient is missing."""
        v, spent = self.weight, None if known is None else self.cache.doubt
        if self.copies == 1 or self.map.eps is None:
            return self.map(v, known, spent)
        # COFT's radius goes by the blocks of one matrix.
        known = None if known is None else known.view(self.copies, -1, *known.shape[1:])
        return self.map(v.view(self.copies, -1, v.shape[-1]), known, spent).flatten(0, 1)

    def doubt(self) -> None:
        self.cache.doubt()
        self.partial.cache.doubt()

    def train(self, mode: bool = True) -> Rotation:
        self.cache.clear()
        self.partial.cache.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Rotation:
        self.cache.clear()
        self.partial.cache.clear()
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # A copy computes for itself: its group would bring the whole model along.
        return {**self.__dict__, "cache": RotationCache(), "partial": Partial(), "group": None, "shard": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.number = numbered(self)

    def extra_repr(self) -> str:
        return f"blocks={self.layout.block_count}x{self.layout.block_size}, shared={self.layout.shared}"
