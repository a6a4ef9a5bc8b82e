"""The image world's pictures as a user's own would be: in memory, or written out as the folders that recipes read."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from orthotune.errors import DataError, OutputError
from orthotune.files.atomic import atomic_write
from orthotune.image.data.captions import METADATA, Example
from orthotune.image.data.image_folder import ImageFile, in_memory_image
from orthotune.worlds import image
from orthotune.worlds.image_captions import NUMBERS, SUBJECT, sentence
from orthotune.worlds.image_data import Scene, compose, draw_scene, mask
from orthotune.worlds.image_sources import Sources

#: Kinds of control images that the world has: masks are its own, the others are made of the images.
CONTROLS = ("segm", "canny", "sketch")


def subject_images() -> list[ImageFile]:
    """The five images of the subject, a nine that the model never saw."""
    sources = image.load_sources()
    return [_picture(scene, sources, f"{number:02}") for number, scene in enumerate(image.subject_scenes(sources))]


def class_pictures(count: int = 64, seed: int = 0) -> list[ImageFile]:
    """Images of the subject's class, other digits than the subject, drawn by the world and not by its model.

    Prior preservation usually takes the model's own, see :mod:`orthotune.image.data.class_images`; these cost nothing.
    """
    sources, chance = image.load_sources(), random.Random(f"class {seed}")
    rows = sources.rows(tuple(range(SUBJECT)), held_out=False)
    return [_picture(draw_scene(rows, chance), sources, f"{number:05}") for number in range(count)]


def control_examples(kind: str, count: int = 1500, seed: int = 0, held_out: bool = False) -> list[Example]:
    """Captioned images on plain grounds with control images: ``segm`` white digits on black, ``canny``, ``sketch``.

    Args:
        kind: ``segm``, ``canny`` or ``sketch``.
        count: how many images.
        seed: of the captions, the digits and their places.
        held_out: digits to test with instead of those to train on.

    Raises:
        DataError: a kind that the world does not have.

    Example:
        >>> one = control_examples("segm", count=1)[0]
        >>> one.caption, one.condition.height
        ('a red eight on a black background', 32)
    """
    if kind not in CONTROLS:
        raise DataError(
            f"control pictures {kind!r} of the image world", needed=f"one of {', '.join(CONTROLS)}",
            do="Pass data=FOLDER and conditions=FOLDER for pictures of your own",
        )  # fmt: skip
    sources = image.load_sources()
    scenes = image.control_scenes(sources, count, seed, held_out)
    examples = _captioned(scenes, sources)
    if kind != "segm":
        return examples
    return [
        Example(one.image, one.caption, _mask(scene, sources, one.image.name))
        for one, scene in zip(examples, scenes, strict=True)
    ]


def captioned_digits(count: int = 600, seed: int = 0) -> list[Example]:
    """Images on every ground with captions such as "a red nine on grass"; every second digit is a nine.

    The word "nine" is new to the model; the other digits keep it from drawing nines whatever the word.

    Example:
        >>> [one.caption for one in captioned_digits(2)]
        ['a purple nine on a white background', 'a purple one on a blue background']
    """
    sources, chance = image.load_sources(), random.Random(f"digits {seed}")
    new = sources.rows((SUBJECT,), held_out=False)
    known = sources.rows(tuple(range(SUBJECT)), held_out=False)
    return _captioned([draw_scene(known if number % 2 else new, chance) for number in range(count)], sources)


def write_subject(folder: Path) -> Path:
    """Write :func:`subject_images` as a folder of images: what the subject recipe reads."""
    return _write(folder, [Example(picture, "") for picture in subject_images()], texts=False)


def write_class(folder: Path, count: int = 64, seed: int = 0) -> Path:
    """Write :func:`class_pictures` as a folder of images."""
    return _write(folder, [Example(picture, "") for picture in class_pictures(count, seed)], texts=False)


def write_captioned(folder: Path, count: int = 600, seed: int = 0) -> Path:
    """Write :func:`captioned_digits` as a folder with a ``.txt`` file beside each image."""
    return _write(folder, captioned_digits(count, seed), texts=True)


def write_control(folder: Path, kind: str, count: int = 1500, seed: int = 0, held_out: bool = False) -> Path:
    """Write :func:`control_examples` as ``images/NAME.png``, their control images as ``conditions/NAME.png`` where
    they are not made of the images, and a ``metadata.jsonl`` that pairs and captions them.
    """
    examples = control_examples(kind, count, seed, held_out)
    with atomic_write(_free(folder)) as partial:
        for place in ("images", "conditions")[: 2 if kind == "segm" else 1]:
            (partial / place).mkdir(parents=True)
        lines = []
        for one in examples:
            name = f"{one.image.name}.png"
            (partial / "images" / name).write_bytes(one.image.content())
            line = {"file_name": f"images/{name}", "text": one.caption}
            if one.condition is not None:
                (partial / "conditions" / name).write_bytes(one.condition.content())
                line["conditioning_image"] = f"conditions/{name}"
            lines.append(json.dumps(line))
        (partial / METADATA).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return Path(folder)


def _write(folder: Path, examples: Sequence[Example], texts: bool) -> Path:
    with atomic_write(_free(folder)) as partial:
        partial.mkdir(parents=True)
        for one in examples:
            (partial / f"{one.image.name}.png").write_bytes(one.image.content())
            if texts:
                (partial / f"{one.image.name}.txt").write_text(one.caption + "\n", encoding="utf-8")
    return Path(folder)


def _free(folder: Path) -> Path:
    """``folder``, if writing it destroys nothing."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"folder {folder}", got="something there already", needed="a new or empty folder")
    return folder


def _captioned(scenes: Sequence[Scene], sources: Sources) -> list[Example]:
    return [
        Example(
            _picture(scene, sources, f"{number:05}"),
            sentence(NUMBERS[int(sources.labels[scene.row])], scene.ink, scene.ground),
        )
        for number, scene in enumerate(scenes)
    ]


def _picture(scene: Scene, sources: Sources, name: str) -> ImageFile:
    return _of(compose(scene, sources), name)


def _mask(scene: Scene, sources: Sources, name: str) -> ImageFile:
    return _of(((mask(scene, sources) > 0.5) * 255).byte().expand(3, -1, -1), name)


def _of(pixels: Tensor, name: str) -> ImageFile:
    return in_memory_image(pixels.permute(1, 2, 0).contiguous().numpy(), name)
