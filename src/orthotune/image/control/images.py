"""Control pictures that a user hands over, as the hint encoder reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from orthotune.errors import DataError
from orthotune.image.control.conditions.kind import Condition, read_colours
from orthotune.image.control.conditions.registry import condition
from orthotune.metrics.image_files import open_image


def hints_of(
    pictures: Any, signal: str | None = None, *, size: tuple[int, int] | None = None, divisor: int = 1,
    resize: bool = False,
) -> Tensor:  # fmt: skip
    """Control images as float32 ``[n, 3, H, W]`` of 0..1.

    Args:
        pictures: one image, or a sequence: Pillow's images, files, ``(H, W, 3)`` uint8 arrays, or tensors
            ``[3, H, W]`` or ``[n, 3, H, W]``, uint8 or floats of 0..1. All but tensors are read as files of their
            kind are read for training: maps of class numbers are coloured, deep depth maps stretched.
        signal: their kind, as "canny".
        size: height and width that is needed; None for that of the first image.
        divisor: sides must be multiples of it.
        resize: change images of another size; colours that are names are never mixed.

    Raises:
        DataError: no image, one that cannot be read, values that are not 0..1, or, without ``resize``, another size.

    Example:
        >>> hints_of(torch.full((3, 8, 6), 255, dtype=torch.uint8)).shape
        torch.Size([1, 3, 8, 6])
    """
    kind = condition(signal) if signal is not None else Condition("control", "")
    if isinstance(pictures, Tensor) and pictures.ndim == 4:
        pictures = list(pictures)
    several = pictures if isinstance(pictures, Sequence) and not isinstance(pictures, str) else [pictures]
    if not several:
        raise DataError("control pictures", got="none", needed="one or more")
    found = [_pixels(one, kind, f"control picture {number}") for number, one in enumerate(several)]
    height, width = size or (found[0].shape[1], found[0].shape[2])
    if resize and size is None:
        height, width = (max(divisor, round(side / divisor) * divisor) for side in (height, width))
    for number, one in enumerate(found):
        if tuple(one.shape[1:]) == (height, width):
            continue
        if not resize:
            raise DataError(
                f"control picture {number}", got=_told(*one.shape[1:]),
                needed=f"{_told(height, width)}, as {'asked for' if size else 'the first one'}",
                do="Pass resize=True to have it changed",
            )  # fmt: skip
        found[number] = _resized(one, (height, width), kind.sharp)
    if height % divisor or width % divisor:
        raise DataError(
            "control pictures", got=_told(height, width), needed=f"sides that are multiples of {divisor}",
            do="Pass resize=True to have them changed",
        )  # fmt: skip
    return torch.stack(found)


def _pixels(one: Any, kind: Condition, said: str) -> Tensor:
    if isinstance(one, Tensor):
        if one.ndim != 3 or one.shape[0] != 3 or not one.numel():
            raise DataError(said, got=f"a tensor {tuple(one.shape)}", needed="[3, height, width]")
        if one.dtype == torch.uint8:
            return one.float() / 255
        if not one.is_floating_point() or not bool(((one >= 0) & (one <= 1)).all()):
            raise DataError(
                said, got=f"{one.dtype} from {one.min():g} to {one.max():g}", needed="uint8, or floats of 0..1"
            )
        return one.float()
    if isinstance(one, str | Path):
        said = f"control picture {one}"
        one = open_image(Path(one), said)
    elif hasattr(one, "__array_interface__") and not hasattr(one, "mode"):
        one = _image(one, said)
    if not hasattr(one, "mode"):
        raise DataError(said, got=type(one).__name__, needed="an image of Pillow, a file, an array or a tensor")
    read = kind.read if kind.name != "control" else read_colours
    return torch.from_numpy(read(one, said).copy()).permute(2, 0, 1).float() / 255


def _image(array: Any, said: str) -> Any:
    from PIL import Image

    if array.dtype.name != "uint8" or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(said, got=f"an array {array.dtype} {array.shape}", needed="(height, width, 3) uint8")
    return Image.fromarray(array)


def _resized(picture: Tensor, size: tuple[int, int], sharp: bool) -> Tensor:
    if sharp:
        return interpolate(picture[None], size, mode="nearest-exact")[0]
    return interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _told(height: int, width: int) -> str:
    return f"{width} x {height} pixels"
