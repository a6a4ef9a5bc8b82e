"""The image world: a small Stable Diffusion pipeline that generates digits, a new subject, and scoring classifiers.

The pipeline was trained on coloured digits from zero to eight, from the training part of the data. It was not trained
on nines, nor on digits of the other part (``held_out``).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthotune.errors import DataError
from orthotune.files.installed_worlds import need, world_folder

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from orthotune.worlds.image_classifiers import Classifier
    from orthotune.worlds.image_data import Scene
    from orthotune.worlds.image_sources import Sources

#: The folder for ``from_pretrained``, the model card, the digits and textures, and the classifiers by name.
PIPELINE: Path
CARD: Path
DATA: Path
CLASSIFIERS: dict[str, Path]
_CLASSIFIERS = ("digit", "subject")

#: The prompts of the subject and of its class, and the number of images of the subject.
SUBJECT_PROMPT, CLASS_PROMPT = "a sks digit", "a digit"
SUBJECT_IMAGES = 5


def load_pipeline(dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """Load the pipeline in one dtype.

    The files are in half precision. diffusers and transformers have different default dtypes for them, so pass a dtype
    when you load ``PIPELINE`` yourself.

    Args:
        dtype: of the weights; float32 if None.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    folder = need(world_folder("image") / "pipeline" / "model_index.json", "pipeline of the image world").parent
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype or torch.float32, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_sources() -> Sources:
    """Load the digits and textures of which scenes are composed."""
    from orthotune.worlds.image_sources import read_sources

    return read_sources(world_folder("image") / "data.safetensors")


def load_classifier(name: str) -> Classifier:
    """Load a scoring classifier.

    Args:
        name: ``"digit"`` classifies the digit of an image; ``"subject"`` embeds handwriting, so that two digits can be
            compared.

    Raises:
        DataError: there is no classifier of that name, or its file is missing.
    """
    from orthotune.worlds import image_classifiers

    if name not in _CLASSIFIERS:
        raise DataError(f"classifier {name!r} of the image world", needed=f"one of {', '.join(_CLASSIFIERS)}")
    path = need(world_folder("image") / f"{name}_judge.safetensors", f"classifier {name!r} of the image world")
    outputs = image_classifiers.DIGITS if name == "digit" else image_classifiers.DIRECTIONS
    return image_classifiers.load_classifier(path, outputs)


def subject_scenes(sources: Sources) -> list[Scene]:
    """Five fixed scenes, each with a held-out nine; the scores depend strongly on the choice of scenes.

    They show one nine and the four nines that are nearest to it in pixels, because a subject is a single thing.
    """
    import torch

    from orthotune.worlds.image_captions import SUBJECT
    from orthotune.worlds.image_data import random_scene

    rows = sources.rows((SUBJECT,), held_out=True)
    pixels = sources.digits[rows].flatten(1).float()
    near = torch.cdist(pixels, pixels).topk(SUBJECT_IMAGES, largest=False)
    chosen = near.indices[near.values.sum(1).argmin()].tolist()
    chance = random.Random(SUBJECT)
    return [random_scene([rows[number]], chance, textured=0.0) for number in chosen]


def control_scenes(sources: Sources, count: int, seed: int, held_out: bool) -> list[Scene]:
    """Scenes on plain grounds for control images.

    Args:
        sources: the digits and textures.
        count: number of scenes.
        seed: of the scenes.
        held_out: digits for testing instead of digits for training.
    """
    from orthotune.worlds.image_captions import SUBJECT
    from orthotune.worlds.image_data import random_scene

    chance = random.Random(seed)
    rows = sources.rows(tuple(range(SUBJECT)), held_out)
    return [random_scene(rows, chance, textured=0.0) for _ in range(count)]


def __getattr__(name: str) -> Any:
    """Look up the paths when they are used, so that importing this module needs no file of the world."""
    if name == "CLASSIFIERS":
        return {classifier: world_folder("image") / f"{classifier}_judge.safetensors" for classifier in _CLASSIFIERS}
    if name in ("PIPELINE", "CARD", "DATA"):
        return world_folder("image") / {"PIPELINE": "pipeline", "CARD": "card.json", "DATA": "data.safetensors"}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
