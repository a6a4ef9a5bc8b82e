"""The sources of the image world: handwritten digits and three textures.

The digits are scikit-learn's ``load_digits`` (8 x 8 pixels, 17 grey levels), the textures scikit-image's ``grass``,
``brick`` and ``gravel``. Both libraries have them in their wheels; the files of the world include a copy.
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
    """Digits uint8 [n, 8, 8] of 0..16, labels [n], whether a digit is held out [n], textures uint8 [3, 128, 128]."""

    digits: Tensor
    labels: Tensor
    held_out: Tensor
    textures: Tensor

    def rows(self, labels: tuple[int, ...], held_out: bool) -> list[int]:
        """The rows of digits with certain labels.

        Args:
            labels: the labels.
            held_out: of the held-out part instead of the training part.
        """
        wanted = torch.isin(self.labels, torch.tensor(labels, dtype=self.labels.dtype)) & (self.held_out == held_out)
        return wanted.nonzero().flatten().tolist()

    def save(self, path: Path) -> None:
        """Write the sources to a safetensors file."""
        write_tensors(path, vars(self))


def read_sources(path: Path) -> Sources:
    """Read a file of ``Sources.save``.

    Raises:
        DataError: the file is missing.
    """
    return Sources(**load_file(need(path, "digits of the image world")))
