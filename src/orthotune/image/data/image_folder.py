"""Training images: found in a folder, checked before training, read one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import DataError
from orthotune.metrics.image_files import DEEP, as_rgb, find_images, open_image, unread_images

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
    """

    name: str
    origin: Path | bytes = field(repr=False)
    height: int
    width: int

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
        return self.origin if isinstance(self.origin, bytes) else self.origin.read_bytes()


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


def name_unread(folder: Path, say: Say) -> None:
    """Name and count the files of formats that are not read.

    Args:
        folder: of images, searched with all its subfolders.
        say: gets the message, if there is one.
    """
    files = [path.relative_to(folder).as_posix() for path in unread_images(folder)]
    if files:
        more = f" and {len(files) - NAMED} more" if len(files) > NAMED else ""
        say(f"{len(files)} files in {folder} are of formats that are not read, and are skipped: "
            f"{', '.join(files[:NAMED])}{more}. Save them as JPEG or PNG.")  # fmt: skip


def open_images(
    origins: Sequence[tuple[str, Path | bytes]], where: str, broken: Broken = "skip", say: Say = print
) -> list[ImageFile | None]:
    """Open and check each file once; None for an unreadable file.

    Args:
        origins: name, and file or bytes of each image.
        where: they are from, for messages.
        broken: ``skip`` or ``refuse`` unreadable files.
        say: gets a message about skipped files.

    Raises:
        DataError: no file is readable, or, with ``broken="refuse"``, a file is not.
    """
    if broken not in ("skip", "refuse"):
        raise DataError(f"broken={broken!r}", needed="skip or refuse")
    # Pillow releases the global interpreter lock while it decodes.
    with ThreadPoolExecutor(8) as threads:
        looked = list(threads.map(_look, origins))
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


def _look(one: tuple[str, Path | bytes]) -> ImageFile | DataError:
    name, origin = one
    given = name if isinstance(origin, bytes) else str(origin)
    try:
        image = eight_bits(open_image(origin, given), given)
    except DataError as fault:
        return fault
    return ImageFile(name, origin, image.height, image.width)


def _named(faults: Sequence[DataError]) -> str:
    named = [f"{fault.given} ({fault.got})" for fault in faults[:NAMED]]
    return "; ".join(named) + (f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else "")
