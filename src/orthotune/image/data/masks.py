"""Masks of training images: how much each pixel counts in the loss, from transparency or from files beside them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import DataError
from orthotune.image.data.image_folder import ImageFile
from orthotune.metrics.image_files import SUFFIXES, open_image

#: ``alpha``: opaque pixels count. ``files``: light pixels of the mask beside the image.
MaskSource = Literal["none", "alpha", "files"]
#: Ends of the names of files with a mask, of orthotune and ai-toolkit, and of OneTrainer.
ENDS = (".mask", "-masklabel")


def is_mask(name: str, names: Container[str]) -> bool:
    """Whether an image of this name is the mask of another one in its folder, so that nothing is trained on it.

    Args:
        name: of an image, without suffix.
        names: of all images in the folder.

    Example:
        >>> is_mask("cat.mask", {"cat", "cat.mask"}), is_mask("cat.mask", {"cat.mask"})
        (True, False)
    """
    return any(name.endswith(end) and name.removesuffix(end) in names for end in ENDS)


def mask_of(image: ImageFile, source: MaskSource) -> Any:
    """How much each pixel of an image counts, ``(height, width, 3)`` uint8 with equal channels; None where all count.

    Args:
        image: the image.
        source: where masks are. An image without transparency, or without a file, counts everywhere.

    Raises:
        DataError: a mask of another size than its image, or a file that cannot be read.

    Example:
        >>> from orthotune.image.data.image_folder import in_memory_image
        >>> import numpy as np
        >>> mask_of(in_memory_image(np.zeros((2, 2, 3), np.uint8), "opaque"), "alpha") is None
        True
    """
    if source == "none":
        return None
    given = f"image {image.name}"
    if source == "alpha":
        found = open_image(image.origin, given)
        grey = found.convert("RGBA").getchannel("A") if _transparent(found) else None
    else:
        path = mask_file(image)
        grey = None if path is None else open_image(path, f"mask {path}").convert("L")
    if grey is None:
        return None
    if grey.size != (image.width, image.height):
        raise DataError(
            f"the mask of {given}", got=f"{grey.width} x {grey.height} pixels",
            needed=f"{image.width} x {image.height}, as its image",
        )  # fmt: skip
    import numpy as np

    return np.repeat(np.array(grey)[..., None], 3, axis=2)


def check_masks(images: Sequence[ImageFile], source: MaskSource) -> None:
    """Refuse masks that no image has, as where their files have other names: the loss would count everywhere.

    Args:
        images: of a data set.
        source: where masks are.

    Raises:
        DataError: there is no mask.

    Example:
        >>> check_masks([], "none")
    """
    if source == "none":
        return
    if source == "files":
        there = any(mask_file(image) is not None for image in images)
    else:
        there = any(_transparent(open_image(image.origin, f"image {image.name}")) for image in images)
    if not there:
        got = "no mask beside any image" if source == "files" else "no image that is transparent anywhere"
        needed = "NAME.mask.png or NAME-masklabel.png beside NAME.png" if source == "files" else "PNG files with alpha"
        raise DataError(
            f"loss_masks={source}", got=f"{got} of {len(images)}", needed=needed, do="Add them, or leave loss_masks out"
        )


def _transparent(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def mask_file(image: ImageFile) -> Path | None:
    """The file with the mask of an image: ``NAME.mask.png`` or ``NAME-masklabel.png`` beside it; None without one.

    Args:
        image: with a file as its origin; images in tables have no mask beside them.
    """
    if isinstance(image.origin, bytes):
        return None
    beside = image.origin.with_suffix("")
    names = (beside.with_name(f"{beside.name}{end}{suffix}") for end in ENDS for suffix in SUFFIXES)
    return next((path for path in names if path.is_file()), None)
