"""What the image world is drawn from: handwritten digits and three textures, and where they come from.

The digits are scikit-learn's ``load_digits`` (8 x 8 pixels, 17 grey levels), the textures scikit-image's ``grass``,
``brick`` and ``gravel``. Both libraries ship them in their wheels; the few bytes needed are kept beside the world.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from orthotune.files.installed_worlds import need
from orthotune.files.safetensors_file import write_tensors

TEXTURES: tuple[str, ...] = ("grass", "bricks", "gravel")


@dataclass(frozen=True)
class Sources:
    """Digits uint8 [n, 8, 8] of 0..16, their labels [n], which are held out [n], textures uint8 [3, 128, 128]."""

    digits: Tensor
    labels: Tensor
    held_out: Tensor
    textures: Tensor

    def rows(self, labels: tuple[int, ...], held_out: bool) -> list[int]:
        """Numbers of the digits of ``labels`` in one of the two parts."""
        wanted = torch.isin(self.labels, torch.tensor(labels, dtype=self.labels.dtype)) & (self.held_out == held_out)
        return wanted.nonzero().flatten().tolist()

    def save(self, path: Path) -> None:
        """Write them to one safetensors file."""
        write_tensors(path, vars(self))


def read_sources(path: Path) -> Sources:
    """Read what ``Sources.save`` wrote; a missing file is a ``DataError``."""
    return Sources(**load_file(need(path, "digits of the image world")))
