"""Score a trained image world in its released form, and install it if it passes the gates."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from config_files import change_config
from orthotune.files.atomic import atomic_write, write_text
from orthotune.files.json_file import read_json, write_json
from orthotune.worlds.image_captions import prompts
from orthotune.worlds.image_classifiers import DIGITS, Classifier, follows, load_classifier
from orthotune.worlds.image_samples import GUIDANCE, STEPS, sample_images
from orthotune.worlds.image_sources import Sources

#: Smallest shares of images that must follow their prompts.
GATES: dict[str, float] = {"digit": 0.95, "ink": 0.98, "ground": 0.98}
PROMPTS = 120

NOTICE = """The digits in data.safetensors, and those that the pipeline and the judges were trained on, are
scikit-learn's load_digits: the test part of "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak,
UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, licensed under CC BY 4.0.

The textures in it are scikit-image's grass (linolafett, DeviantArt), brick and gravel (CC0Textures), all CC0; they
were reduced and made equally bright.

The autoencoder was also trained on crops of scikit-image's coffee, rocket, retina, hubble_deep_field,
immunohistochemistry and coins, which are CC0, in the public domain or without known restrictions. None of them
is contained here.
"""


class WorseWorld(Exception):
    """The world failed the gates, or a better world is already installed."""


def release(
    out: Path, draft: Path, card: dict[str, object], pipeline: StableDiffusionPipeline, sources: Sources,
    classifiers: dict[str, Classifier],
) -> dict[str, object]:  # fmt: skip
    """Write the world to ``draft``, score the written files, and move them to ``out``; return the card with scores.

    Raises:
        WorseWorld: the world is left in ``draft``, and ``out`` is unchanged.
    """
    shutil.rmtree(draft, ignore_errors=True)
    save_pipeline(pipeline, draft / "pipeline")
    sources.save(draft / "data.safetensors")
    for name, classifier in classifiers.items():
        classifier.save(draft / f"{name}_judge.safetensors")
    write_text(draft / "NOTICE", NOTICE)
    # Measured on the released weights, which are rounded to half precision.
    shipped = StableDiffusionPipeline.from_pretrained(draft / "pipeline", torch_dtype=torch.float32)
    shipped.set_progress_bar_config(disable=True)
    digit = load_classifier(draft / "digit_judge.safetensors", DIGITS)
    wanted = prompts(PROMPTS, seed=1)
    shares = follows(digit, sample_images(shipped, wanted, seed=0, steps=STEPS), wanted)
    scores = {name: round(share, 4) for name, share in shares.items()}
    card["follows"] = {"prompts": PROMPTS, "steps": STEPS, "guidance": GUIDANCE, **scores}
    write_json(draft / "card.json", card)
    for path in draft.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    low = [f"{name} {scores[name]} of {least}" for name, least in GATES.items() if scores[name] < least]
    if low:
        raise WorseWorld(f"{', '.join(low)} needed. The draft is in {draft.name}/ of the work folder.")
    if (out / "card.json").is_file():
        installed = read_json(out / "card.json")["follows"]
        if sum(installed[name] for name in GATES) > sum(scores[name] for name in GATES):
            raise WorseWorld(f"the installed world follows more of its prompts ({installed}) than this one ({scores}).")
    with atomic_write(out) as partial:
        shutil.copytree(draft, partial)
    return card


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Write the pipeline in half precision, in the layout of Stable Diffusion 1.5; ``pipeline`` keeps its dtype."""
    parts = {
        name: deepcopy(part).half() if isinstance(part, torch.nn.Module) else part
        for name, part in pipeline.components.items()
    }
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    # The files are in half precision to be small, but the model is for training: by default it loads in float32.
    change_config(folder / "text_encoder" / "config.json", dtype="float32")
    # Compact, because the file would consist mostly of indentation.
    words = folder / "tokenizer" / "tokenizer.json"
    write_text(words, json.dumps(read_json(words), separators=(",", ":")))
