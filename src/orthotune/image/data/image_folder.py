"""Training images and clips: found in a folder, checked before training, read one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import DataError
from orthotune.image.data.clips import READER, clip_suffixes, content_of, frames_of
from orthotune.metrics.image_files import VIDEOS, as_rgb, eight_bits, find_images, open_image, unread_images

Broken = Literal["skip", "refuse"]
Say = Callable[[str], None]
#: Most broken images that a message names; the others are counted.
NAMED = 20


@dataclass(frozen=True)
class ImageFile:
    """An image file that was checked; its pixels are read when they are needed.

    Args:
        name: path in the folder without suffix.
        origin: the file, or its bytes.
        height: in pixels, after rotation by the EXIF orientation.
        width: in pixels, after rotation by the EXIF orientation.
        frames: 1 of an image; of a clip the number that is trained on.
    """

    name: str
    origin: Path | bytes = field(repr=False)
    height: int
    width: int
    frames: int = field(default=1, repr=False)

    @property
    def key(self) -> str | bytes:
        """What tells the image apart from others, also of another folder: its file or its bytes; else its name."""
        return self.origin or self.name if isinstance(self.origin, bytes) else str(self.origin)

    def pixels(self) -> Any:
        """The pixels as ``(height, width, 3)`` uint8: transparent parts on white, grey as colour, 16 bits scaled to 8.

        Raises:
            DataError: the file has changed and is no longer readable.
        """
        given = f"image {self.name}"
        return as_rgb(eight_bits(open_image(self.origin, given), given), given)

    def content(self) -> bytes:
        """The bytes of the file."""
        return self.origin if isinstance(self.origin, bytes) else content_of(self.origin)


@dataclass(frozen=True)
class ClipFile(ImageFile):
    """A clip that was checked; its origin may also be a folder of numbered images.

    Args:
        length: number of its frames, at least ``frames``.
    """

    length: int = 1

    def pixels(self) -> Any:
        """The pixels of the first frame, as those of an image."""
        return next(frames_of(self.origin, f"clip {self.name}"))

    def window(self, start: int = 0) -> Any:
        """As many frames as are trained on, ``(frames, height, width, 3)`` uint8.

        Args:
            start: number of the first of them, from 0.

        Raises:
            DataError: the file has changed and is no longer readable, or has fewer frames.
        """
        import numpy as np

        found = list(islice(frames_of(self.origin, f"clip {self.name}"), start, start + self.frames))
        if len(found) < self.frames:
            raise DataError(
                f"clip {self.name}", got=f"{start + len(found)} frames", needed=f"{self.length}, as when the run began"
            )
        return np.stack(found)


def in_memory_image(pixels: Any, name: str) -> ImageFile:
    """Encode pixels as a PNG file in memory.

    Args:
        pixels: ``(height, width, 3)`` uint8.
        name: of the image.

    Example:
        >>> import numpy as np
        >>> in_memory_image(np.zeros((2, 3, 3), dtype=np.uint8), "black")
        ImageFile(name='black', height=2, width=3)
    """
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return ImageFile(name, file.getvalue(), *pixels.shape[:2])


def read_folder(folder: Path, broken: Broken = "skip", say: Say = print) -> list[ImageFile]:
    """All images in ``folder`` and below, sorted by name.

    Args:
        folder: of images, searched with all its subfolders.
        broken: ``skip`` skips unreadable files, with one message; ``refuse`` makes them an error.
        say: gets the message.

    Raises:
        DataError: there is no such folder, no readable image in it, two files of the same name, or, with ``refuse``, an
            unreadable file.

    Example:
        >>> [image.name for image in read_folder(Path("my-dog"))]  # doctest: +SKIP
        ['00', '01', '02']
    """
    found = list(find_images(Path(folder)).items())
    name_unread(Path(folder), say)
    return [image for image in open_images(found, f"in {folder}", broken, say) if image is not None]


def name_unread(folder: Path, say: Say, frames: int = 1) -> None:
    """Name and count the files of formats that are not read.

    Args:
        folder: of images, searched with all its subfolders.
        say: gets the message, if there is one.
        frames: of a clip; above 1, clips are read, too.
    """
    files = [path.relative_to(folder).as_posix() for path in unread_images(folder, clip_suffixes(frames))]
    if files:
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        film = frames > 1 and any(name.lower().endswith(VIDEOS) for name in files)
        do = f"Films are read where PyAV is installed: pip install {READER}" if film else "Save them as JPEG or PNG"
        say(f"{len(files)} files in {folder} are of formats that are not read, and are skipped: "
            f"{', '.join(files[:NAMED])}{more}. {do}.")  # fmt: skip


def open_images(
    origins: Sequence[tuple[str, Path | bytes]], where: str, broken: Broken = "skip", say: Say = print, frames: int = 1
) -> list[ImageFile | None]:
    """Open and check each file once; None for an unreadable file.

    Args:
        origins: name, and file or bytes of each image.
        where: they are from, for messages.
        broken: ``skip`` or ``refuse`` unreadable files.
        say: gets a message about skipped files.
        frames: of a clip; above 1, animations, films and folders of frames are clips, and shorter ones count as
            unreadable.

    Raises:
        DataError: no file is readable, or, with ``broken="refuse"``, a file is not.
    """
    if broken not in ("skip", "refuse"):
        raise DataError(f"broken={broken!r}", needed="skip or refuse")
    # Pillow releases the global interpreter lock while it decodes.
    with ThreadPoolExecutor(8) as threads:
        looked = list(threads.map(partial(_look, frames=frames), origins))
    faults = [seen for seen in looked if isinstance(seen, DataError)]
    if faults and (broken == "refuse" or len(faults) == len(looked)):
        raise DataError(
            f"images {where}",
            got=f"{len(faults)} of {len(looked)} that cannot be read: {_named(faults)}",
            do='Repair or remove them, or pass broken="skip"' if len(faults) < len(looked) else None,
        )
    if faults:
        say(f"{len(faults)} of {len(looked)} images {where} cannot be read and are skipped: {_named(faults)}.")
    return [None if isinstance(seen, DataError) else seen for seen in looked]


def _look(one: tuple[str, Path | bytes], frames: int) -> ImageFile | DataError:
    name, origin = one
    given = name if isinstance(origin, bytes) else str(origin)
    try:
        if frames > 1:
            return _look_at_clip(name, origin, given, frames)
        image = eight_bits(open_image(origin, given), given)
    except DataError as fault:
        return fault
    return ImageFile(name, origin, image.height, image.width)


def _look_at_clip(name: str, origin: Path | bytes, given: str, frames: int) -> ImageFile:
    length, size = 0, (0, 0)
    for frame in frames_of(origin, given):
        length, size = length + 1, frame.shape[:2]
    if length == 1 and not (isinstance(origin, Path) and origin.is_dir()):
        return ImageFile(name, origin, *size)
    if length < frames:
        raise DataError(given, got=f"{length} frames, fewer than frames={frames}")
    return ClipFile(name, origin, *size, frames, length)


def _named(faults: Sequence[DataError]) -> str:
    named = [f"{fault.given} ({fault.got})" for fault in faults[:NAMED]]
    return "; ".join(named) + (f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else "")
