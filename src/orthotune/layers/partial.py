"""The rotation of a layer at a strength other than 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from orthotune.errors import ConfigError
from orthotune.layers.rotation_cache import RotationCache
from orthotune.rotation.geodesic import Planes, partial_rotation, planes_of_skew
from orthotune.rotation.strength import blended

if TYPE_CHECKING:
    from orthotune.layers.rotation_module import Rotation


class Partial:
    """Blocks at a strength, with the gradient to their parameter; their planes are found once per parameter version.

    The planes take four times the memory of the rotation in float64; they stay until the parameter changes, so that
    any other strength is two small products away.
    """

    def __init__(self) -> None:
        self.cache: RotationCache[Planes] = RotationCache()

    def __call__(self, rotation: Rotation, known: Tensor | None = None) -> Tensor:
        """The blocks ``(copies * rows, b, b)``; ``known`` is the result when only the gradient is missing.

        Raises:
            ConfigError: ``R^t`` of a Neumann series is to be trained.
        """
        v, strength, map = rotation.weight, rotation.strength, rotation.map
        trained = torch.is_grad_enabled() and v.requires_grad
        if strength.kind != "geodesic":
            return blended(rotation.whole(), strength.t)
        if trained and not map.exact:
            raise ConfigError(
                f"training a Neumann series at strength {strength.t:g}", needed="strength 1, or the exact map",
                do="Call set_scale(adapter, 1) before training, or set_scale(adapter, t, kind='linear')",
            )  # fmt: skip

        def spent() -> None:
            rotation.cache.doubt()
            self.cache.doubt()

        shape = (rotation.copies, -1, v.shape[-1]) if map.eps is not None else v.shape  # COFT's ball goes by the matrix
        Q = map.skew(v.view(shape)).view(v.shape[0], map.block_size, map.block_size)
        return partial_rotation(Q, strength.t, self._planes(rotation, Q), known, spent if trained else None)

    def _planes(self, rotation: Rotation, Q: Tensor) -> Planes:
        v = rotation.weight
        kept = not (torch.compiler.is_compiling() or v.is_inference())
        found = self.cache.get(v) if kept else None
        if found is None:
            with torch.inference_mode(not kept and v.is_inference()), torch.no_grad():
                found = planes_of_skew(Q, None if rotation.map.exact else rotation.whole())
                if kept:
                    self.cache.put(v, found, v.detach().clone())
        return found
