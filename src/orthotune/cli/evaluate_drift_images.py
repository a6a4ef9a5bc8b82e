"""``orthotune evaluate drift`` for image models: base and adapted pipeline on the same prompts and seeds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

#: The built-in pipeline, by the name that recipes give it.
WORLD = "image-world"
PROMPTS = 24


def is_pipeline(base: str) -> bool:
    """Whether ``base`` is a diffusers pipeline or the built-in one.

    Example:
        >>> is_pipeline("image-world"), is_pipeline("text-world")
        (True, False)
    """
    return base == WORLD or (Path(base).expanduser() / "model_index.json").is_file()


def measure_images(
    adapter: Path, data: str | None, base: str, *, limit: int, seed: int, steps: int, guidance: float | None,
    model: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The drift of an adapter of the pipeline ``base``, as plain values ready for JSON.

    Args:
        adapter: a folder or a file of any format.
        data: text file with one prompt per line; the built-in pipeline has prompts of its own.
        base: ``image-world``, or the folder of a pipeline.
        limit: largest number of prompts.
        seed: seed of the first image's noise; each further image takes the next number.
        steps: sampling steps.
        guidance: guidance scale; None takes the pipeline's default.
        model: path or hub name of a vision model; None takes the built-in classifier for the built-in pipeline, and
            compares no features for others.

    Raises:
        OrthotuneError: the pipeline, the adapter, the prompts or the vision model cannot be used.
    """
    import torch

    from orthotune.image.adapter.saved_adapter import expert_of, load_adapter
    from orthotune.image.families.registry import open_family
    from orthotune.metrics.image_drift import image_drift
    from orthotune.operations.load import load_adapter as load_file
    from orthotune.worlds import image as image_world

    prompts = _prompts(data, base, limit)
    features, seen_by = _features(model, base)
    family = open_family(image_world.PIPELINE if base == WORLD else base, torch.float32, "cpu")
    if expert := expert_of(adapter):
        family.train_expert(expert)
    seeds = list(range(seed, seed + len(prompts)))
    before = family.generate(prompts, seeds, steps=steps, guidance=guidance)
    if adapter.is_dir():
        load_adapter(family, adapter)
    else:
        load_file(family.pipeline, adapter)
    after = family.generate(prompts, seeds, steps=steps, guidance=guidance)
    found = asdict(image_drift(before, after, features))
    return {"adapter": str(adapter), "base": base, "data": data or WORLD, "seen_by": seen_by, **found}


def _prompts(data: str | None, base: str, limit: int) -> list[str]:
    from orthotune.errors import DataError

    if data in (None, WORLD):
        if base != WORLD:
            raise DataError(
                f"prompts for {base}", got="none", needed="a text file with one prompt per line, not about the task",
                do="Name it with --data",
            )  # fmt: skip
        from orthotune.worlds.image_captions import prompts

        return [prompt.text for prompt in prompts(min(limit, PROMPTS), seed=1)]
    from orthotune.image.data.prompt_file import read_prompts

    return read_prompts(Path(str(data)), limit, f"--data {data}")


def _features(model: str | None, base: str) -> tuple[Any, str | None]:
    """The function from images to feature vectors, and its name; both None for a foreign pipeline without ``model``."""
    from orthotune.metrics import vision_model
    from orthotune.worlds import image as image_world

    if model is not None:
        loaded = vision_model.load(model, "cpu")

        def embedding(images: Any) -> Any:
            return vision_model.image_embeddings((one.permute(1, 2, 0).numpy() for one in images), *loaded)

        return embedding, model
    if base != WORLD:
        return None, None
    from orthotune.worlds.image_data import as_input

    # The features before the last layer still hold colours and positions.
    classifier = image_world.load_classifier("digit")
    return (lambda images: classifier.trunk(as_input(images))), "the built-in classifier of digits"
