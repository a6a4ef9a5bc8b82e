"""One kind of control picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orthotune.errors import ConfigError
from orthotune.image.data.image_folder import eight_bits
from orthotune.metrics.image_files import as_rgb


def read_colours(image: Any, said: str) -> Any:
    """The colours of a control image as they are; an image of Pillow to ``(height, width, 3)`` uint8."""
    return as_rgb(eight_bits(image, said), said)


@dataclass(frozen=True)
class Condition:
    """A kind of control image. Images are ``(height, width, 3)`` uint8 arrays.

    Args:
        name: as the user says it.
        shows: one line for help and errors.
        make: a control image from an image; None where files are read only.
        read: a control image from an image of Pillow and words that name it.
        sharp: its colours are names, so they are never mixed when it is resized.
        points: whether a JSON file of points may stand for the images.
    """

    name: str
    shows: str
    make: Callable[[Any], Any] | None = None
    read: Callable[[Any, str], Any] = read_colours
    sharp: bool = False
    points: bool = False

    def made(self, pixels: Any) -> Any:
        """The control image of ``pixels``.

        Raises:
            ConfigError: this kind is read from files only, or the library that makes it is not installed.
        """
        if self.make is None:
            raise ConfigError(
                f"condition {self.name}", got="no files", needed=f"control pictures: {self.shows}",
                do="Pass conditions=FOLDER with one file of the same name for each picture",
            )  # fmt: skip
        try:
            return self.make(pixels)
        except ModuleNotFoundError as fault:
            extra = {"cv2": "metrics", "face_alignment": "landmarks"}.get(fault.name or "", "")
            do = f'Install it with pip install "orthotune[{extra}]", or pass conditions=FOLDER' if extra else None
            raise ConfigError(f"condition {self.name}", got=f"no library {fault.name}", do=do) from fault
