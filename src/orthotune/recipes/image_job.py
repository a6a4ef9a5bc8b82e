"""What a recipe for image models adds to the shared run, and the model that it starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, matching_rank
from orthotune.image.families.family import Family
from orthotune.image.families.registry import open_family
from orthotune.image.loop.accelerator import check_precision, storage_dtype
from orthotune.image.loop.order import Dataset
from orthotune.image.loop.samples import Sampler
from orthotune.image.loop.trackers import check_trackers
from orthotune.image.loop.trainee import Trainee
from orthotune.recipes.image_settings import WORLD, ImageSettings
from orthotune.runs import adapters
from orthotune.runs.quiet import quiet
from orthotune.worlds import image as image_world

#: Step and family to numbers by name; what the image world's scores are.
Score = Callable[[int, Family], dict[str, float]]


@dataclass(frozen=True)
class ImageJob:
    """What one recipe adds to :func:`orthotune.recipes.image_run.run_image`.

    Args:
        data: makes the data set from the pretrained family, before the adapter is put on. Its second argument is the
            run's folder, for what is worth keeping, or None in a dry run: then nothing may be written or generated.
        prompts: of the samples, when ``sample_prompts`` does not say.
        adapt: puts on what is trained, and returns what to tell about it; the adapter of the settings by default.
        hint_encoder: makes the encoder of control pictures that is trained beside the adapter.
        sampler: draws samples with that encoder; the family's ``generate`` by default.
        scores: what measures the model, at the beginning, every ``eval_every`` steps and at the end.
        keep: writes what else was trained into the folder of the adapter (or of the model).
    """

    data: Callable[[Family, Path | None], Dataset]
    prompts: Sequence[str] = ()
    adapt: Callable[[Family], list[str]] | None = None
    hint_encoder: Callable[[Family], nn.Module] | None = None
    sampler: Callable[[Trainee], Sampler] | None = None
    scores: Sequence[Score] = ()
    keep: Callable[[Trainee, Path], None] | None = None


def plan_image(settings: ImageSettings, job: ImageJob) -> list[str]:
    """What :func:`orthotune.recipes.image_run.run_image` would train, in lines to print; nothing is trained or written.

    Raises:
        RecipeError, DataError, TargetError, BlockSizeError: as the run itself would.
    """
    from orthotune.image.loop.memory_estimate import estimate_memory

    check_precision(settings.mixed_precision)
    check_trackers(settings.trackers)
    with quiet():
        family = open_model(settings, torch.device("cpu"))
        data = job.data(family, None)
        notes = adapt(family, settings, job)
        trainee = Trainee(family, job.hint_encoder(family) if job.hint_encoder else None)
    seen = settings.steps * settings.batch_size * settings.gradient_accumulation
    sizes = Counter(data.bucket(index) for index in range(len(data)))
    trained, total = adapters.trainable(trainee)
    layers = {name.rpartition(".")[0] for name in trainee.learning()}
    return [
        f"model       {settings.model}: {family.name}",
        *(f"            {note}" for note in notes),
        f"trained     {trained:,} of {total:,} parameters in {len(layers)} places, by {settings.method}",
        f"pictures    {len(data)}: " + ", ".join(f"{count} of {w} x {h}" for (h, w), count in sorted(sizes.items())),
        f"steps       {settings.steps}, which see {seen:,} pictures ({seen / max(1, len(data)):.1f} times each)",
        *estimate_memory(family, trainee, settings),
    ]


def open_model(settings: ImageSettings, device: torch.device) -> Any:
    """The family of the model that ``settings`` name, frozen."""
    source = str(image_world.PIPELINE) if settings.model == WORLD else settings.model
    # Full finetuning keeps float32 weights: an update of a half-precision weight is mostly rounded away.
    dtype = torch.float32 if settings.method == "full" else storage_dtype(settings.mixed_precision)
    return open_family(source, dtype, device)


def adapt(family: Any, settings: ImageSettings, job: ImageJob) -> list[str]:
    """Put on what is trained; what there is to tell about it."""
    if job.adapt:
        return job.adapt(family)
    torch.manual_seed(settings.seed)
    wanted = adapter_settings(settings)
    notes = []
    if settings.method == "lora" and settings.lora_rank is None:
        rank, parameters, equal = matching_rank(family, wanted)
        notes.append(f"lora_rank={rank}: {parameters:,} parameters, nearest to OFT's {equal:,} on the same layers.")
    add_adapter(family, wanted)
    return notes


def adapter_settings(settings: ImageSettings) -> AdapterSettings:
    """What ``settings`` say of the adapter, as ``diffusion.adapters`` reads it."""
    return AdapterSettings(
        method=settings.method,
        targets=settings.target_modules,
        block_size=settings.block_size,
        r=settings.r,
        eps=settings.eps,
        rotation=settings.rotation,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora=settings.lora,
        text_encoders=settings.train_text_encoder,
    )
