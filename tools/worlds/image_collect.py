"""Collect the digits and textures of the image world, and photographs for its autoencoder, from scikit-learn and
scikit-image (extra ``build-worlds``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from orthotune.worlds.image_sources import Sources

HELD_OUT = 360
#: Photographs for the autoencoder only, without faces. ``chelsea`` is not used, so that users can test with it.
PHOTOS = ("coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry", "coins")
_SIDE = 128


def collect_sources() -> Sources:
    """Collect digits and textures from scikit-learn and scikit-image (extra ``build-worlds``)."""
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
    """Random square crops of ``PHOTOS``, resized to uint8 [count, 3, size, size]."""
    from skimage import data

    photos = []
    for name in PHOTOS:
        pixels = torch.from_numpy(getattr(data, name)()).float()
        photos.append(pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels.expand(3, -1, -1))
    generator = torch.Generator().manual_seed(seed)
    crops = []
    for number in range(count):
        photo = photos[number % len(photos)]
        side = int(torch.randint(48, 193, (), generator=generator))
        top, left = (int(torch.randint(extent - side, (), generator=generator)) for extent in photo.shape[1:])
        crop = photo[:, top : top + side, left : left + side]
        crops.append(interpolate(crop[None], (size, size), mode="bilinear", antialias=True))
    return torch.cat(crops).round().clamp(0, 255).to(torch.uint8)


def _texture(pixels: Tensor) -> Tensor:
    """A grey image resized to 128 x 128, with the same mean and standard deviation for all textures."""
    small = interpolate(pixels[None, None].float(), (_SIDE, _SIDE), mode="bilinear", antialias=True)[0, 0]
    return (128 + 48 * (small - small.mean()) / small.std()).round().clamp(0, 255).to(torch.uint8)
