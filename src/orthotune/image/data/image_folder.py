"""Images to learn from: found in a folder, looked at before any training, read one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import DataError
from orthotune.metrics.image_files import DEEP, as_rgb, find_images, open_image

Broken = Literal["skip", "refuse"]
Say = Callable[[str], None]
#: How many broken images are named; the others are counted.
NAMED = 20


@dataclass(frozen=True)
class Picture:
    """An image that was found to be whole; its pixels are read when they are asked for.

    Args:
        name: how it is called: its path in the folder without suffix.
        origin: its file, or the bytes that such a file would hold.
        height, width: in pixels, as it is looked at (turned as its camera says).
    """

    name: str
    origin: Path | bytes = field(repr=False)
    height: int
    width: int

    def pixels(self) -> Any:
        """Its pixels, transparent parts on white, grey as colour, 16 bits as 8; ``(height, width, 3)`` uint8 array.

        Raises:
            DataError: it has changed since it was found and cannot be read any more.
        """
        said = f"image {self.name}"
        return as_rgb(eight_bits(open_image(self.origin, said), said), said)

    def content(self) -> bytes:
        """The bytes of its file."""
        return self.origin if isinstance(self.origin, bytes) else self.origin.read_bytes()


def picture_of(pixels: Any, name: str) -> Picture:
    """An image that lies in memory alone, from a ``(height, width, 3)`` uint8 array.

    Example:
        >>> import numpy as np
        >>> picture_of(np.zeros((2, 3, 3), dtype=np.uint8), "black")
        Picture(name='black', height=2, width=3)
    """
    from PIL import Image

    file = BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return Picture(name, file.getvalue(), *pixels.shape[:2])


def read_folder(folder: Path, broken: Broken = "skip", say: Say = print) -> list[Picture]:
    """All images in ``folder`` and below, sorted by name.

    Args:
        folder: of images, searched with all folders in it.
        broken: ``skip`` skips files that cannot be read, with one message; ``refuse`` is an error instead.
        say: gets the message.

    Raises:
        DataError: no such folder, no image in it (or none that can be read), two files of one name, or, with
            ``refuse``, a file that cannot be read.

    Example:
        >>> [picture.name for picture in read_folder(Path("my-dog"))]  # doctest: +SKIP
        ['00', '01', '02']
    """
    found = list(find_images(Path(folder)).items())
    return [picture for picture in open_pictures(found, f"in {folder}", broken, say) if picture is not None]


def open_pictures(
    origins: Sequence[tuple[str, Path | bytes]], where: str, broken: Broken = "skip", say: Say = print
) -> list[Picture | None]:
    """Look at each file, named in ``origins``, once; None where it cannot be read.

    Raises:
        DataError: none can be read, or, with ``broken="refuse"``, one cannot.
    """
    if broken not in ("skip", "refuse"):
        raise DataError(f"broken={broken!r}", needed="skip or refuse")
    # Pillow decodes without holding Python's lock.
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


def eight_bits(image: Any, said: str) -> Any:
    """``image`` with 8 bits per channel: 16-bit grey is scaled, 65535 to 255.

    Raises:
        DataError: 32-bit whole numbers beyond 16 bits, or fractions: what white is, the file does not say.
    """
    if image.mode not in DEEP:
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise DataError(said, got=f"pixels of mode {image.mode}", needed="8 or 16 bits per channel")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _look(one: tuple[str, Path | bytes]) -> Picture | DataError:
    name, origin = one
    said = name if isinstance(origin, bytes) else str(origin)
    try:
        image = eight_bits(open_image(origin, said), said)
    except DataError as fault:
        return fault
    return Picture(name, origin, image.height, image.width)


def _named(faults: Sequence[DataError]) -> str:
    named = [f"{fault.given} ({fault.got})" for fault in faults[:NAMED]]
    return "; ".join(named) + (f"; and {len(faults) - NAMED} more" if len(faults) > NAMED else "")
