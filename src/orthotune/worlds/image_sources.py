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
from torch.nn.functional import interpolate

from orthotune.errors import DataError
from orthotune.files.safetensors_file import write_tensors

TEXTURES: tuple[str, ...] = ("grass", "bricks", "gravel")
HELD_OUT = 360
#: Photographs for the autoencoder only. No picture with a face in it; ``chelsea`` is left for users to try.
PHOTOS = ("coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry", "coins")
_SIDE = 128


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
    if not path.is_file():
        raise DataError(
            "digits of the image world",
            got=f"no file {path.name} in the installed package",
            do="Reinstall orthotune, or build the world again with python -m orthotune.worlds.build_image",
        )
    return Sources(**load_file(path))


def collect_sources() -> Sources:
    """Take digits and textures out of scikit-learn and scikit-image (extra ``world``)."""
    from skimage import data
    from sklearn.datasets import load_digits

    bunch = load_digits()
    count = len(bunch.target)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    held_out = torch.zeros(count, dtype=torch.bool)
    held_out[order[:HELD_OUT]] = True
    textures = torch.stack([_texture(torch.from_numpy(image)) for image in (data.grass(), data.brick(), data.gravel())])
    digits = torch.from_numpy(bunch.images).to(torch.uint8)
    return Sources(digits, torch.from_numpy(bunch.target).to(torch.uint8), held_out, textures)


def photo_crops(count: int, size: int, seed: int) -> Tensor:
    """Random squares of ``PHOTOS``, reduced to uint8 [count, 3, size, size]."""
    from skimage import data

    photos = []
    for name in PHOTOS:
        pixels = torch.from_numpy(getattr(data, name)()).float()
        photos.append(pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels.expand(3, -1, -1))
    draw = torch.Generator().manual_seed(seed)
    crops = []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(torch.randint(48, 193, (), generator=draw))
        top, left = (int(torch.randint(extent - side, (), generator=draw)) for extent in photo.shape[1:])
        crop = photo[:, top : top + side, left : left + side]
        crops.append(interpolate(crop[None], (size, size), mode="bilinear", antialias=True))
    return torch.cat(crops).round().clamp(0, 255).to(torch.uint8)


def _texture(pixels: Tensor) -> Tensor:
    """A grey picture reduced to 128 x 128, its mean and spread made those of the other textures."""
    small = interpolate(pixels[None, None].float(), (_SIDE, _SIDE), mode="bilinear", antialias=True)[0, 0]
    return (128 + 48 * (small - small.mean()) / small.std()).round().clamp(0, 255).to(torch.uint8)
