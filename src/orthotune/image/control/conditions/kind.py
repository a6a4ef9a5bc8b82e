"""The class of kinds of control images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orthotune.errors import ConfigError
from orthotune.metrics.image_files import as_rgb, eight_bits


def read_colours(image: Any, given: str) -> Any:
    """The colours of a control image, unchanged.

    Args:
        image: an image of Pillow.
        given: name of the image, for messages.

    Returns:
        ``(height, width, 3)`` uint8.
    """
    return as_rgb(eight_bits(image, given), given)


@dataclass(frozen=True)
class Condition:
    """A kind of control image; images are ``(height, width, 3)`` uint8 arrays.

    Args:
        name: value of the setting ``signal``.
        shows: what the images show; one line for help and messages.
        make: computes a control image from an image; None if control images must come from files.
        read: returns a control image from an image of Pillow and its name for messages.
        sharp: colours stand for classes, so that resizing must not mix them.
        points: whether a JSON file of points may replace the images.
    """

    name: str
    shows: str
    make: Callable[[Any], Any] | None = None
    read: Callable[[Any, str], Any] = read_colours
    sharp: bool = False
    points: bool = False

    def made(self, pixels: Any) -> Any:
        """The control image computed from ``pixels``.

        Raises:
            ConfigError: this kind must come from files, or the library that computes it is not installed.
        """
        if self.make is None:
            raise ConfigError(
                f"condition {self.name}", got="no files", needed=f"control images: {self.shows}",
                do="Pass conditions=FOLDER with one file of the same name for each image",
            )  # fmt: skip
        try:
            return self.make(pixels)
        except ModuleNotFoundError as fault:
            extra = {"cv2": "metrics", "face_alignment": "landmarks"}.get(fault.name or "", "")
            do = f'Install it with pip install "orthotune[{extra}]", or pass conditions=FOLDER' if extra else None
            raise ConfigError(f"condition {self.name}", got=f"no library {fault.name}", do=do) from fault
