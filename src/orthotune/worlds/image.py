"""The image world: a small Stable Diffusion pipeline that draws digits, a subject that it never saw, and its judges.

The pipeline was trained on coloured zeros to eights of one part of the digits. Nines, and all digits of the other
part (``held_out``), are new to it.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from orthotune.errors import DataError

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

    from orthotune.worlds.image_data import Scene
    from orthotune.worlds.image_judges import Judge
    from orthotune.worlds.image_sources import Sources

_HOME = Path(__file__).parent / "image"

PIPELINE: Path = _HOME / "pipeline"
CARD: Path = _HOME / "card.json"
DATA: Path = _HOME / "data.safetensors"
JUDGES: dict[str, Path] = {"digit": _HOME / "digit_judge.safetensors", "subject": _HOME / "subject_judge.safetensors"}

#: What the subject's pictures and those of its class are called.
SUBJECT_PROMPT, CLASS_PROMPT = "a sks digit", "a digit"
SUBJECT_PICTURES = 5


def load_pipeline(dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """The whole pipeline in one dtype, float32 unless given.

    Its files are in half precision to be small. Without a dtype, diffusers and transformers disagree about what to
    load them as; so give one wherever you load ``PIPELINE`` yourself.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    _need(PIPELINE / "model_index.json", "pipeline")
    pipeline = StableDiffusionPipeline.from_pretrained(
        PIPELINE, torch_dtype=dtype or torch.float32, local_files_only=True, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_sources() -> Sources:
    """The digits and textures that the scenes are drawn with."""
    from orthotune.worlds.image_sources import read_sources

    return read_sources(DATA)


def load_judge(name: str) -> Judge:
    """``"digit"`` names the digit of a picture, ``"subject"`` says how alike two handwritten digits are."""
    from orthotune.worlds import image_judges

    if name not in JUDGES:
        raise DataError(f"judge {name!r} of the image world", needed=f"one of {', '.join(JUDGES)}")
    _need(JUDGES[name], f"judge {name!r}")
    outputs = image_judges.DIGITS if name == "digit" else image_judges.DIRECTIONS
    return image_judges.load_judge(JUDGES[name], outputs)


def subject_scenes(sources: Sources) -> list[Scene]:
    """Five scenes with one held-out nine each: always the same, as results depend much on which they are.

    They are the nine with its four nearest, pixel by pixel: a subject is one thing, not five.
    """
    import torch

    from orthotune.worlds.image_captions import SUBJECT
    from orthotune.worlds.image_data import draw_scene

    rows = sources.rows((SUBJECT,), held_out=True)
    pixels = sources.digits[rows].flatten(1).float()
    near = torch.cdist(pixels, pixels).topk(SUBJECT_PICTURES, largest=False)
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


def _need(path: Path, what: str) -> None:
    if not path.is_file():
        raise DataError(
            f"{what} of the image world",
            got=f"no file {path.name} in the installed package",
            do="Reinstall orthotune, or build the world again with python -m orthotune.worlds.build_image",
        )
