"""Patches of the photographs that ship inside scikit-image; nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor

from orthotune.errors import DataError

#: Functions of ``skimage.data`` whose files are in its wheel, so that none of them downloads anything.
TRAINED_ON = ("coffee", "rocket", "retina", "hubble_deep_field", "immunohistochemistry", "stereo_motorcycle")
HELD_OUT = "chelsea"


def photo(name: str) -> Tensor:
    """A photograph of scikit-image, from -1 (black) to 1.

    Args:
        name: a function of ``skimage.data``.

    Shapes: ``(3, height, width)`` float32.

    Raises:
        DataError: the installed scikit-image does not have the photograph.

    Example:
        >>> photo("chelsea").shape  # doctest: +SKIP
        torch.Size([3, 300, 451])
    """
    from skimage import data

    try:
        pixels = getattr(data, name)()
    except (
        AttributeError,
        OSError,
        ModuleNotFoundError,
    ) as fault:  # or the downloader is not installed
        raise DataError(
            f"the photograph {name}",
            got=f"none in this scikit-image ({fault})",
            do="Install scikit-image 0.25 or newer",
        ) from fault
    pixels = pixels[0] if isinstance(pixels, tuple) else pixels  # a stereo pair: the left one
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def patches(image: Tensor, count: int, size: int, generator: torch.Generator) -> Tensor:
    """Square patches at random places.

    Args:
        image: ``(3, height, width)``.
        count: number of patches.
        size: of a side, in pixels.
        generator: chooses the places.

    Shapes: ``(3, height, width)`` -> ``(count, 3, size, size)``.

    Example:
        >>> patches(torch.zeros(3, 9, 7), 2, 4, torch.Generator()).shape
        torch.Size([2, 3, 4, 4])
    """
    _, height, width = image.shape
    tops = torch.randint(height - size + 1, (count,), generator=generator).tolist()
    lefts = torch.randint(width - size + 1, (count,), generator=generator).tolist()
    cut = [image[:, top : top + size, left : left + size] for top, left in zip(tops, lefts, strict=True)]
    return torch.stack(cut)
