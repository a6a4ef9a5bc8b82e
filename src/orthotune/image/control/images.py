"""Convert the control images of a user to the input of the hint encoder."""

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
    images: Any, signal: str | None = None, *, size: tuple[int, int] | None = None, divisor: int = 1,
    resize: bool = False,
) -> Tensor:  # fmt: skip
    """Control images as float32 ``[n, 3, H, W]`` of 0..1.

    Args:
        images: one image, or a sequence: Pillow's images, files, ``(H, W, 3)`` uint8 arrays, or tensors
            ``[3, H, W]`` or ``[n, 3, H, W]``, uint8 or floats of 0..1. All but tensors are read as files of their
            kind are read for training: maps of class numbers are coloured, deep depth maps stretched.
        signal: kind of the control images, such as "canny".
        size: required height and width; None for the size of the first image.
        divisor: sides must be multiples of this number of pixels.
        resize: resize images of another size; colours that stand for classes are not mixed.

    Raises:
        DataError: no image, an unreadable image, values outside 0..1, or, without ``resize``, another size.

    Example:
        >>> hints_of(torch.full((3, 8, 6), 255, dtype=torch.uint8)).shape
        torch.Size([1, 3, 8, 6])
    """
    kind = condition(signal) if signal is not None else Condition("control", "")
    if isinstance(images, Tensor) and images.ndim == 4:
        images = list(images)
    several = images if isinstance(images, Sequence) and not isinstance(images, str) else [images]
    if not several:
        raise DataError("control images", got="none", needed="one or more")
    found = [_pixels(one, kind, f"control image {number}") for number, one in enumerate(several)]
    height, width = size or (found[0].shape[1], found[0].shape[2])
    if resize and size is None:
        height, width = (max(divisor, round(side / divisor) * divisor) for side in (height, width))
    for number, one in enumerate(found):
        if tuple(one.shape[1:]) == (height, width):
            continue
        if not resize:
            raise DataError(
                f"control image {number}", got=_size(*one.shape[1:]),
                needed=f"{_size(height, width)}, as {'asked for' if size else 'the first one'}",
                do="Pass resize=True to have it changed",
            )  # fmt: skip
        found[number] = _resized(one, (height, width), kind.sharp)
    if height % divisor or width % divisor:
        raise DataError(
            "control images", got=_size(height, width), needed=f"sides that are multiples of {divisor}",
            do="Pass resize=True to have them changed",
        )  # fmt: skip
    return torch.stack(found)


def _pixels(one: Any, kind: Condition, given: str) -> Tensor:
    if isinstance(one, Tensor):
        if one.ndim != 3 or one.shape[0] != 3 or not one.numel():
            raise DataError(given, got=f"a tensor {tuple(one.shape)}", needed="[3, height, width]")
        if one.dtype == torch.uint8:
            return one.float() / 255
        if not one.is_floating_point() or not bool(((one >= 0) & (one <= 1)).all()):
            raise DataError(
                given, got=f"{one.dtype} from {one.min():g} to {one.max():g}", needed="uint8, or floats of 0..1"
            )
        return one.float()
    if isinstance(one, str | Path):
        given = f"control image {one}"
        one = open_image(Path(one), given)
    elif hasattr(one, "__array_interface__") and not hasattr(one, "mode"):
        one = _image(one, given)
    if not hasattr(one, "mode"):
        raise DataError(given, got=type(one).__name__, needed="an image of Pillow, a file, an array or a tensor")
    read = kind.read if kind.name != "control" else read_colours
    return torch.from_numpy(read(one, given).copy()).permute(2, 0, 1).float() / 255


def _image(array: Any, given: str) -> Any:
    from PIL import Image

    if array.dtype.name != "uint8" or array.ndim != 3 or array.shape[2] != 3:
        raise DataError(given, got=f"an array {array.dtype} {array.shape}", needed="(height, width, 3) uint8")
    return Image.fromarray(array)


def _resized(image: Tensor, size: tuple[int, int], sharp: bool) -> Tensor:
    if sharp:
        return interpolate(image[None], size, mode="nearest-exact")[0]
    return interpolate(image[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def _size(height: int, width: int) -> str:
    return f"{width} x {height} pixels"
