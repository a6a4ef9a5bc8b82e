"""Find the images in a folder, and read one image file in a defined way."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from orthotune.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
#: What clips of several frames end in: animated images (beside .webp and .png), films, and folders of their frames.
ANIMATED, VIDEOS, FRAMES = (".gif", ".apng", ".avif"), (".mp4", ".mov", ".webm"), ".frames"
#: Formats of images and films that are not read as images: of phones and cameras, animations, drawings.
OTHER_SUFFIXES = (
    ".heic", ".heif", ".jxl", ".svg", ".psd", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng", *ANIMATED, *VIDEOS,
)  # fmt: skip
#: Modes of Pillow whose values exceed 255; a conversion would clip them.
DEEP = ("I", "F", "I;16", "I;16B", "I;16L")


def find_images(folder: Path, clips: Sequence[str] = ()) -> dict[str, Path]:
    """Name -> file of each image in ``folder`` and below, sorted. A name is the path inside the folder without suffix.

    Args:
        folder: searched with all its subfolders.
        clips: what the files of clips end in, to find clips, too; a folder ``NAME.frames`` is then one clip.

    Raises:
        DataError: no such folder, no image in it, or two files of one name.

    Example:
        >>> find_images(Path("results"))  # doctest: +SKIP
        {'cat/0': PosixPath('results/cat/0.png')}
    """
    if not folder.is_dir():
        raise DataError(f"images in {folder}", got="a file" if folder.exists() else "no such folder", needed="a folder")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        if not _is_image(path, clips) or any(p.startswith(".") for p in within.parts):
            continue
        if clips and any(parent.suffix.lower() == FRAMES for parent in within.parents):
            continue
        name = within.with_suffix("").as_posix()
        if name in found:
            raise DataError(
                f"images in {folder}", got=f"{found[name].name} and {path.name} of one name",
                do="Remove one of them, or name files in a manifest",
            )  # fmt: skip
        found[name] = path
    if not found:
        others = [path.name for path in unread_images(folder, clips)]
        got = f"none, and {len(others)} of other formats: {', '.join(others[:3])}" if others else "none"
        more = f", or folders NAME{FRAMES}" if clips else ""
        raise DataError(
            f"images in {folder}", got=got, needed=f"files that end in {', '.join((*SUFFIXES, *clips))}{more}"
        )
    return found


def _is_image(path: Path, clips: Sequence[str]) -> bool:
    if clips and path.suffix.lower() == FRAMES:
        return path.is_dir()
    return path.suffix.lower() in (*SUFFIXES, *clips) and path.is_file()


def unread_images(folder: Path, clips: Sequence[str] = ()) -> list[Path]:
    """Files in ``folder`` and below that hold images or films in a format that is not read, sorted.

    Args:
        folder: searched with all its subfolders.
        clips: as for :func:`find_images`.

    Example:
        >>> unread_images(Path("photos"))  # doctest: +SKIP
        [PosixPath('photos/IMG_1.HEIC')]
    """
    unread = set(OTHER_SUFFIXES) - set(clips)
    return [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in unread and path.is_file()]


def read_rgb(path: Path) -> Any:
    """The pixels of an image, rotated by its EXIF orientation, transparent parts on white.

    Shapes: ``(height, width, 3)`` uint8, a numpy array.

    Raises:
        DataError: the file is missing, truncated or no image, or holds more than 8 bits per channel.

    Example:
        >>> read_rgb(Path("cat.png")).shape  # doctest: +SKIP
        (512, 512, 3)
    """
    return as_rgb(open_image(path, f"image {path}"), f"image {path}")


def eight_bits(image: Any, given: str) -> Any:
    """``image`` with 8 bits per channel; 16-bit grey is scaled, 65535 to 255.

    Args:
        image: an image of Pillow.
        given: name of the image, for messages.

    Raises:
        DataError: 32-bit integers beyond 16 bits, or floating-point values, for which the value of white is unknown.
    """
    if image.mode not in DEEP:
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise DataError(given, got=f"pixels of mode {image.mode}", needed="8 or 16 bits per channel")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def as_rgb(image: Any, given: str) -> Any:
    """An image of Pillow as a ``(height, width, 3)`` uint8 array, transparent parts on white.

    Args:
        image: an image of Pillow.
        given: name of the image, for messages.

    Raises:
        DataError: the image has more than 8 bits per channel.
    """
    import numpy as np
    from PIL import Image

    if image.mode in DEEP:
        raise DataError(given, got=f"pixels of mode {image.mode}", needed="8 bits per channel")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def read_labels(path: Path) -> Any:
    """A map of class numbers from a file with one channel, a palette, or three equal channels.

    Shapes: ``(height, width)`` int64, a numpy array.

    Raises:
        DataError: the file is missing, truncated or no image, or is coloured, so that it does not hold class numbers.

    Example:
        >>> read_labels(Path("map.png")).max()  # doctest: +SKIP
        149
    """
    import numpy as np

    pixels = np.array(open_image(path, f"image {path}"))
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or pixels.dtype.kind not in "iub":
        raise DataError(f"map {path}", got="colours", needed="one channel that holds class numbers")
    return pixels.astype(np.int64)


def open_image(origin: Path | bytes, given: str) -> Any:
    """A completely read image of Pillow, rotated by its EXIF orientation.

    Args:
        origin: a file, or the bytes of one.
        given: name of the image, for messages.

    Raises:
        DataError: the file does not exist, is truncated or not an image.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(BytesIO(origin) if isinstance(origin, bytes) else origin) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    # Pillow has no common error for damaged files: SyntaxError for PNG, struct.error and ValueError for others.
    except Exception as fault:
        got = "no such file" if isinstance(fault, FileNotFoundError) else f"no complete image ({fault})"
        raise DataError(given, got=got) from fault
