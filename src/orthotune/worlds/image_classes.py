"""The image world's digits with their colours as classes: data for classifiers of images."""

from __future__ import annotations

import random

from orthotune.errors import DataError
from orthotune.image.data.image_folder import ImageFile, in_memory_image
from orthotune.worlds import image
from orthotune.worlds.image_data import compose, random_scene

#: What settings call the images.
COLOURED = "image-world/colours"
#: Images to learn from, and held-out ones.
COUNT, HELD_OUT_COUNT = 600, 200


def coloured_digits(source: str = COLOURED, count: int | None = None) -> list[tuple[ImageFile, str]]:
    """Digits on plain and textured grounds, each with the name of its colour.

    Args:
        source: ``image-world/colours``, or ``image-world/colours/held_out`` with other handwriting.
        count: number of images; None for 600, and 200 held-out ones.

    Raises:
        DataError: another name, or the world is not installed.

    Example:
        >>> [name for _, name in coloured_digits(count=3)]
        ['cyan', 'black', 'purple']
    """
    if source not in (COLOURED, f"{COLOURED}/held_out"):
        raise DataError(f"data {source!r}", got="no such images", needed=f"{COLOURED} or {COLOURED}/held_out")
    held_out = source != COLOURED
    sources, chance = image.load_sources(), random.Random(source)
    rows = sources.rows(tuple(range(10)), held_out=held_out)
    found = []
    for number in range(count or (HELD_OUT_COUNT if held_out else COUNT)):
        scene = random_scene(rows, chance)
        pixels = compose(scene, sources).permute(1, 2, 0).numpy()
        found.append((in_memory_image(pixels, f"{number:05}"), scene.ink))
    return found
