"""The image world's digits with their names as classes: data for classifiers of images."""

from __future__ import annotations

import random

from orthotune.errors import DataError
from orthotune.image.data.image_folder import ImageFile, in_memory_image
from orthotune.worlds import image
from orthotune.worlds.image_captions import NUMBERS
from orthotune.worlds.image_data import compose, random_scene

#: What settings call the images.
DIGITS = "image-world/digits"
#: Images to learn from, and held-out ones.
COUNT, HELD_OUT_COUNT = 1200, 200


def labelled_digits(source: str = DIGITS, count: int | None = None) -> list[tuple[ImageFile, str]]:
    """Digits on plain and textured grounds, each with its name.

    Args:
        source: ``image-world/digits``, or ``image-world/digits/held_out`` with other handwriting.
        count: number of images; None for 1200, and 200 held-out ones.

    Raises:
        DataError: another name, or the world is not installed.

    Example:
        >>> [name for _, name in labelled_digits(count=3)]
        ['one', 'six', 'zero']
    """
    if source not in (DIGITS, f"{DIGITS}/held_out"):
        raise DataError(f"data {source!r}", got="no such images", needed=f"{DIGITS} or {DIGITS}/held_out")
    held_out = source != DIGITS
    sources, chance = image.load_sources(), random.Random(source)
    rows = sources.rows(tuple(range(10)), held_out=held_out)
    found = []
    for number in range(count or (HELD_OUT_COUNT if held_out else COUNT)):
        scene = random_scene(rows, chance)
        pixels = compose(scene, sources).permute(1, 2, 0).numpy()
        found.append((in_memory_image(pixels, f"{number:05}"), NUMBERS[int(sources.labels[scene.row])]))
    return found
