"""The frames of a clip: of an animated image, of a folder ``NAME.frames`` of numbered images, or of a video file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.metrics.image_files import ANIMATED, FRAMES, SUFFIXES, VIDEOS, as_rgb, eight_bits, open_image

#: The library that reads video files.
READER = "av"
#: Formats of Pillow whose further images are frames; those of TIFF are pages, and phones add previews to JPEG.
MOVING = ("GIF", "PNG", "WEBP", "AVIF")


def clip_suffixes(frames: int) -> tuple[str, ...]:
    """What the files of clips end in, beside those of images: animated images, and films where a library reads them.

    Args:
        frames: of a clip; with 1, all are images, and there are no clips.
    """
    return () if frames == 1 else (*ANIMATED, *(VIDEOS if find_spec(READER) else ()))


def frames_of(origin: Path | bytes, given: str) -> Iterator[Any]:
    """The frames of a clip one after the other, ``(height, width, 3)`` uint8, all of one size.

    Args:
        origin: an image, animated or not, or its bytes; a folder of numbered images; or a video file.
        given: name of the clip, for messages.

    Raises:
        DataError: the file or an image of the folder cannot be read completely, the folder has no images, or the frames
            are of different sizes.

    Example:
        >>> from PIL import Image
        >>> file = BytesIO()
        >>> red, blue = (Image.new("RGB", (3, 2), colour) for colour in ("red", "blue"))
        >>> red.save(file, format="GIF", save_all=True, append_images=[blue])
        >>> [frame.shape for frame in frames_of(file.getvalue(), "clip")]
        [(2, 3, 3), (2, 3, 3)]
    """
    size = None
    for number, frame in enumerate(_frames(origin, given), 1):
        if size is not None and frame.shape != size:
            raise DataError(
                given, got=f"frame {number} of {frame.shape[1]} x {frame.shape[0]} pixels",
                needed=f"{size[1]} x {size[0]}, as the first", do="Bring all frames of a clip to one size",
            )  # fmt: skip
        size = frame.shape
        yield frame


def content_of(origin: Path) -> bytes:
    """The bytes of a clip; of a folder, those of its images with their lengths.

    Args:
        origin: a file, or a folder of numbered images.
    """
    if not origin.is_dir():
        return origin.read_bytes()
    parts = [path.read_bytes() for path in numbered(origin)]
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def numbered(folder: Path) -> list[Path]:
    """The images of a folder by the numbers in their names, so that 10 comes after 9.

    Args:
        folder: of the frames of a clip.
    """
    found = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()]
    found = [path for path in found if not path.name.startswith(".")]
    return sorted(found, key=lambda path: [int(w) if w.isdecimal() else w for w in re.split(r"(\d+)", path.name)])


def write_clip(frames: Any, path: Path, rate: int) -> Path:
    """Write an animation without loss that repeats: WebP, or PNG where Pillow is built without WebP.

    Args:
        frames: ``(frames, height, width, 3)`` uint8.
        path: of the file, without suffix.
        rate: frames in a second.

    Returns:
        The path with its suffix. Equal frames in a row are written as one of their length in time.
    """
    from PIL import Image, features

    images = [Image.fromarray(frame) for frame in frames]
    webp = features.check("webp")
    found = path.with_name(f"{path.name}.webp" if webp else f"{path.name}.apng")
    images[0].save(
        found, format="WEBP" if webp else "PNG", save_all=True, append_images=images[1:], duration=round(1000 / rate),
        loop=0, **({"lossless": True} if webp else {}),
    )  # fmt: skip
    return found


def _frames(origin: Path | bytes, given: str) -> Iterator[Any]:
    if isinstance(origin, Path) and origin.is_dir():
        yield from _of_folder(origin, given)
    elif isinstance(origin, Path) and origin.suffix.lower() in VIDEOS:
        yield from _of_video(origin, given)
    else:
        yield from _of_animation(origin, given)


def _of_folder(folder: Path, given: str) -> Iterator[Any]:
    images = numbered(folder)
    if not images:
        raise DataError(given, got="a folder without images", needed=f"NAME{FRAMES}/0001.png and so on")
    for path in images:
        yield as_rgb(eight_bits(open_image(path, str(path)), str(path)), str(path))


def _of_animation(origin: Path | bytes, given: str) -> Iterator[Any]:
    from PIL import Image, ImageOps, ImageSequence

    try:
        with Image.open(BytesIO(origin) if isinstance(origin, bytes) else origin) as file:
            moving = file.format in MOVING
            for frame in ImageSequence.Iterator(file) if moving else (file,):
                frame.load()
                yield as_rgb(eight_bits(ImageOps.exif_transpose(frame), given), given)
    except DataError:
        raise
    # Pillow has no common error for damaged files, see open_image.
    except Exception as fault:
        raise DataError(given, got=f"no complete image ({fault})") from fault


def _of_video(path: Path, given: str) -> Iterator[Any]:
    if not find_spec(READER):
        raise DataError(given, got="a video file", needed="the library PyAV", do=f"Install it: pip install {READER}")
    import av
    import numpy as np

    try:
        with av.open(str(path)) as file:
            for frame in file.decode(video=0):  # of a phone that was held upright, with a rotation beside it
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
    except (av.FFmpegError, IndexError, OSError) as fault:
        raise DataError(given, got=f"no complete film ({fault})") from fault
