"""The image world: a small Stable Diffusion pipeline that draws digits, a subject that it never saw, and its judges.

The pipeline was trained on coloured zeros to eights of one part of the digits. Nines, and all digits of the other
part (``held_out``), are new to it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orthotune.errors import DataError
from orthotune.files.installed_worlds import home, need

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from orthotune.worlds.image_data import Scene
    from orthotune.worlds.image_judges import Judge
    from orthotune.worlds.image_sources import Sources

#: The folder that ``from_pretrained`` reads, the model card, the digits and textures, and the judges by name.
PIPELINE: Path
CARD: Path
DATA: Path
JUDGES: dict[str, Path]
_JUDGES = ("digit", "subject")

#: What the subject's images and those of its class are called.
SUBJECT_PROMPT, CLASS_PROMPT = "a sks digit", "a digit"
SUBJECT_IMAGES = 5


def load_pipeline(dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """The entire pipeline in one dtype, float32 unless given.

    Its files are in half precision to be small. Without a dtype, diffusers and transformers disagree about what to
    load them as; so give one wherever you load ``PIPELINE`` yourself.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    folder = need(home("image") / "pipeline" / "model_index.json", "pipeline of the image world").parent
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=dtype or torch.float32, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_sources() -> Sources:
    """The digits and textures that the scenes are drawn with."""
    from orthotune.worlds.image_sources import read_sources

    return read_sources(home("image") / "data.safetensors")


def load_judge(name: str) -> Judge:
    """``"digit"`` names the digit of an image, ``"subject"`` says how alike two handwritten digits are."""
    from orthotune.worlds import image_judges

    if name not in _JUDGES:
        raise DataError(f"judge {name!r} of the image world", needed=f"one of {', '.join(_JUDGES)}")
    path = need(home("image") / f"{name}_judge.safetensors", f"judge {name!r} of the image world")
    return image_judges.load_judge(path, image_judges.DIGITS if name == "digit" else image_judges.DIRECTIONS)


def subject_scenes(sources: Sources) -> list[Scene]:
    """Five scenes with one held-out nine each: always the same, as results depend much on which they are.

    They are the nine with its four nearest, pixel by pixel: a subject is one thing, not five.
    """
    import torch

    from orthotune.worlds.image_captions import SUBJECT
    from orthotune.worlds.image_data import draw_scene

    rows = sources.rows((SUBJECT,), held_out=True)
    pixels = sources.digits[rows].flatten(1).float()
    near = torch.cdist(pixels, pixels).topk(SUBJECT_IMAGES, largest=False)
    chosen = near.indices[near.values.sum(1).argmin()].tolist()
    chance = random.Random(SUBJECT)
    return [draw_scene([rows[number]], chance, textured=0.0) for number in chosen]


def control_scenes(sources: Sources, count: int, seed: int, held_out: bool) -> list[Scene]:
    """Scenes on plain grounds for training with a condition (or, ``held_out``, for testing with one)."""
    from orthotune.worlds.image_captions import SUBJECT
    from orthotune.worlds.image_data import draw_scene

    chance = random.Random(seed)
    rows = sources.rows(tuple(range(SUBJECT)), held_out)
    return [draw_scene(rows, chance, textured=0.0) for _ in range(count)]


def __getattr__(name: str) -> Any:
    """The paths are looked up when they are used: importing this module needs no file of the world."""
    if name == "JUDGES":
        return {judge: home("image") / f"{judge}_judge.safetensors" for judge in _JUDGES}
    if name in ("PIPELINE", "CARD", "DATA"):
        return home("image") / {"PIPELINE": "pipeline", "CARD": "card.json", "DATA": "data.safetensors"}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
