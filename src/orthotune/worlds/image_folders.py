"""The data of the image world in the form of user data: in memory, or written as the folders that recipes read."""

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
from orthotune.worlds.image_data import Scene, compose, mask, random_scene
from orthotune.worlds.image_sources import Sources

#: Kinds of control images of the image world: masks come with the scenes, the others are computed from the images.
CONTROLS = ("segm", "canny", "sketch")


def subject_images() -> list[ImageFile]:
    """The five images of the subject, a nine that the model was not trained on."""
    sources = image.load_sources()
    return [_scene_image(scene, sources, f"{number:02}") for number, scene in enumerate(image.subject_scenes(sources))]


def class_images(count: int = 64, seed: int = 0) -> list[ImageFile]:
    """Images of the class of the subject, which are other digits, composed instead of generated.

    Prior preservation usually trains on images that the model generates, see
    :mod:`orthotune.image.data.class_images`; these images are composed in no time.

    Args:
        count: number of images.
        seed: of the scenes.
    """
    sources, chance = image.load_sources(), random.Random(f"class {seed}")
    rows = sources.rows(tuple(range(SUBJECT)), held_out=False)
    return [_scene_image(random_scene(rows, chance), sources, f"{number:05}") for number in range(count)]


def control_examples(kind: str, count: int = 1500, seed: int = 0, held_out: bool = False) -> list[Example]:
    """Captioned images on plain grounds with control images.

    Args:
        kind: ``segm`` (white digits on black), ``canny`` or ``sketch``.
        count: number of images.
        seed: of captions, digits and positions.
        held_out: digits for testing instead of digits for training.

    Raises:
        DataError: another kind.

    Example:
        >>> one = control_examples("segm", count=1)[0]
        >>> one.caption, one.condition.height
        ('a red eight on a black background', 32)
    """
    if kind not in CONTROLS:
        raise DataError(
            f"control images {kind!r} of the image world", needed=f"one of {', '.join(CONTROLS)}",
            do="Pass data=FOLDER and conditions=FOLDER for your own images",
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
    """Images on all grounds with captions such as "a red nine on grass"; every second digit is a nine.

    The word "nine" is new to the model. The other digits prevent a model that generates nines for all prompts.

    Args:
        count: number of images.
        seed: of the scenes.

    Example:
        >>> [one.caption for one in captioned_digits(2)]
        ['a purple nine on a white background', 'a purple one on a blue background']
    """
    sources, chance = image.load_sources(), random.Random(f"digits {seed}")
    new = sources.rows((SUBJECT,), held_out=False)
    known = sources.rows(tuple(range(SUBJECT)), held_out=False)
    return _captioned([random_scene(known if number % 2 else new, chance) for number in range(count)], sources)


def write_subject(folder: Path) -> Path:
    """Write :func:`subject_images` as a folder of images, as the subject recipe reads it."""
    return _write(folder, [Example(one, "") for one in subject_images()], texts=False)


def write_class(folder: Path, count: int = 64, seed: int = 0) -> Path:
    """Write :func:`class_images` as a folder of images.

    Args:
        folder: a new or empty folder.
        count: number of images.
        seed: of the scenes.
    """
    return _write(folder, [Example(one, "") for one in class_images(count, seed)], texts=False)


def write_captioned(folder: Path, count: int = 600, seed: int = 0) -> Path:
    """Write :func:`captioned_digits` as a folder with a ``.txt`` file for each image.

    Args:
        folder: a new or empty folder.
        count: number of images.
        seed: of the scenes.
    """
    return _write(folder, captioned_digits(count, seed), texts=True)


def write_control(folder: Path, kind: str, count: int = 1500, seed: int = 0, held_out: bool = False) -> Path:
    """Write :func:`control_examples` as a folder.

    Images are written as ``images/NAME.png``, masks as ``conditions/NAME.png``, pairs and captions as
    ``metadata.jsonl``. Other control images are not written, because they are computed from the images.

    Args:
        folder: a new or empty folder.
        kind: ``segm``, ``canny`` or ``sketch``.
        count: number of images.
        seed: of the scenes.
        held_out: digits for testing instead of digits for training.
    """
    examples = control_examples(kind, count, seed, held_out)
    with atomic_write(_free(folder)) as partial:
        for name in ("images", "conditions")[: 2 if kind == "segm" else 1]:
            (partial / name).mkdir(parents=True)
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
    """``folder``, after checking that nothing is overwritten."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"folder {folder}", got="existing files", needed="a new or empty folder")
    return folder


def _captioned(scenes: Sequence[Scene], sources: Sources) -> list[Example]:
    return [
        Example(
            _scene_image(scene, sources, f"{number:05}"),
            sentence(NUMBERS[int(sources.labels[scene.row])], scene.ink, scene.ground),
        )
        for number, scene in enumerate(scenes)
    ]


def _scene_image(scene: Scene, sources: Sources, name: str) -> ImageFile:
    return _image_of_pixels(compose(scene, sources), name)


def _mask(scene: Scene, sources: Sources, name: str) -> ImageFile:
    return _image_of_pixels(((mask(scene, sources) > 0.5) * 255).byte().expand(3, -1, -1), name)


def _image_of_pixels(pixels: Tensor, name: str) -> ImageFile:
    return in_memory_image(pixels.permute(1, 2, 0).contiguous().numpy(), name)
