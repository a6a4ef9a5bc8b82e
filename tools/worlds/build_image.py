"""Build the image world: ``python tools/worlds/build_image.py --out DIR``.

The sources are data of scikit-learn and scikit-image (extra ``build-worlds``). An interrupted build continues from its
last checkpoint. A world that fails the gates, or is worse than the world that DIR already has, is not installed.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch

from image_classifier_training import VIEWS, examine, train_digit_classifier, train_subject_classifier, views
from image_collect import collect_sources, photo_crops
from image_pretrain import as_pipeline, new_text_encoder, new_unet, token_ids, train_denoiser
from image_release import WorseWorld, release
from image_tokenizer import new_tokenizer
from image_training import OutOfTime, Plan
from image_vae import encode, new_vae, signal_to_noise, train_vae
from orthotune.worlds.image_captions import SUBJECT, WORDS, caption
from orthotune.worlds.image_data import SIDE, Scene, compose_all, random_scene
from orthotune.worlds.image_sources import Sources

SCENES, PHOTOS = 24_000, 3_000
VAE_STEPS, CLASSIFIER_STEPS, STEPS = 4_200, 2_000, 7_000


def build(out: Path, work: Path, steps: int, seed: int, deadline: float) -> dict[str, object]:
    """Train all parts, score the pipeline and install it in ``out``; return the card.

    Args:
        out: the folder of the world.
        work: folder for checkpoints.
        steps: of the denoiser.
        seed: of all random choices.
        deadline: a value of ``time.monotonic()`` at which training stops.
    """
    work.mkdir(parents=True, exist_ok=True)
    sources = collect_sources()
    scenes = training_scenes(sources, seed)
    images = compose_all(scenes, sources)
    photos = photo_crops(PHOTOS, SIDE, seed)
    vae = new_vae(seed)
    plan = Plan(VAE_STEPS, peak=2e-3, deadline=deadline)
    # Photographs count twice, because there are few of them and they are harder to encode.
    train_vae(vae, torch.cat([images, photos, photos]), plan, work / "vae.pt", seed)

    tokenizer = new_tokenizer(WORDS)
    ids = token_ids(tokenizer, captions(scenes, sources, seed))
    unet, encoder = new_unet(seed), new_text_encoder(tokenizer, seed)
    plan = Plan(steps, peak=1e-3, deadline=deadline)
    latents = encode(vae, images) * vae.config.scaling_factor
    train_denoiser(unet, encoder, latents, ids, plan, work / f"denoiser-seed-{seed}-steps-{steps}.pt", seed)

    plan = Plan(CLASSIFIER_STEPS, peak=2e-3, average=0.99, deadline=deadline)
    seen, labels = views(sources, held_out=False, each=VIEWS, seed=seed)
    digit = train_digit_classifier(seen, labels, plan, work / "digit_judge.pt", seed)
    subject = train_subject_classifier(seen, plan, work / "subject_judge.pt", seed)

    pipeline = as_pipeline(unet, encoder, vae, tokenizer)
    card: dict[str, object] = {
        "parameters": {name: _count(part) for name, part in (("unet", unet), ("vae", vae), ("text_encoder", encoder))},
        "vocabulary": len(tokenizer),
        "scenes": len(scenes),
        "steps": {"vae": VAE_STEPS, "judges": CLASSIFIER_STEPS, "denoiser": steps},
        "seed": seed,
        "vae_decibels": {
            "scenes": round(signal_to_noise(vae, images[:1000]), 2),
            "photos": round(signal_to_noise(vae, photos[:1000]), 2),
        },
        "judges_on_held_out": examine(digit, subject, *views(sources, held_out=True, each=2, seed=seed + 1)),
    }
    return release(out, work / "release", card, pipeline, sources, {"digit": digit, "subject": subject})


def training_scenes(sources: Sources, seed: int) -> list[Scene]:
    """The scenes on which the pipeline is trained: no held-out digits and no nines."""
    chance = random.Random(seed)
    rows = sources.rows(tuple(range(SUBJECT)), held_out=False)
    return [random_scene(rows, chance) for _ in range(SCENES)]


def captions(scenes: list[Scene], sources: Sources, seed: int) -> list[str]:
    """One caption per scene."""
    chance = random.Random(f"captions {seed}")
    return [caption(scene, int(sources.labels[scene.row]), chance) for scene in scenes]


def _count(part: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters())


def main() -> int:
    """Read the command line and build; 1 if the world was not installed."""
    parser = argparse.ArgumentParser(description="Build the image world.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for pipeline/, the classifiers, the data, card.json"
    )
    parser.add_argument("--work", type=Path, help="folder for the checkpoints (OUT-work unless given)")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the denoiser")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after this time; run again to continue")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    work = args.work or args.out.with_name(f"{args.out.name}-work")
    try:
        card = build(args.out, work, args.steps, args.seed, time.monotonic() + 60 * args.minutes)
    except OutOfTime as stop:
        print(f"Out of time at {stop}. Run the same command again to continue.")
        return 1
    except WorseWorld as refusal:
        print(f"Not installed: {refusal}")
        return 1
    print(json.dumps(card, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
