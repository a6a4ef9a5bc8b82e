"""The recipe-specific part of a run on an image model, and the model that the run starts from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from orthotune.errors import DataError, RecipeError
from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, matching_rank
from orthotune.image.adapter.continued import continue_adapter
from orthotune.image.families.family import Family
from orthotune.image.families.registry import FAMILIES, open_family
from orthotune.image.held_out import hold_out
from orthotune.image.loop.accelerator import check_precision, storage_dtype
from orthotune.image.loop.block_swap import BlockSwap, blocks_of, swapped
from orthotune.image.loop.optimizer import check_optimizer, make_optimizer
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.order import Bucket, Dataset
from orthotune.image.loop.samples import Sampler
from orthotune.image.loop.trackers import check_trackers
from orthotune.image.loop.trainee import Trainee
from orthotune.quantized.in_place import check_word
from orthotune.recipes import preset
from orthotune.recipes.image_settings import WORLD, ImageSettings
from orthotune.runs import adapters
from orthotune.runs.quiet import quiet
from orthotune.worlds import image as image_world

#: Step and family -> name -> score; the type of the scores of the image world.
Score = Callable[[int, Family], dict[str, float]]


@dataclass(frozen=True)
class ImageJob:
    """The parts of a run that differ between recipes, for :func:`orthotune.recipes.image_run.run_image`.

    Args:
        data: returns the data set, for the pretrained family without adapter. The second argument is the run directory,
            for files of the data set, or None in a dry run, in which nothing may be written or generated.
        prompts: of the samples, if ``sample_prompts`` is empty.
        adapt: adds the adapter and returns messages; by default adds the adapter of the settings.
        hint_encoder: returns an encoder of control images that is trained together with the adapter.
        sampler: returns a sampler that uses this encoder; by default ``generate`` of the family.
        scores: evaluated at the beginning, each ``eval_every`` steps and at the end.
        keep: writes further trained networks into the folder of the adapter (or of the model).
        trigger: the words that call what is learned, for the header of the file.
    """

    data: Callable[[Family, Path | None], Dataset]
    prompts: Sequence[str] = ()
    adapt: Callable[[Family], list[str]] | None = None
    hint_encoder: Callable[[Family], nn.Module] | None = None
    sampler: Callable[[Trainee], Sampler] | None = None
    scores: Sequence[Score] = ()
    keep: Callable[[Trainee, Path], None] | None = None
    trigger: str = ""


def dataset_options(settings: ImageSettings) -> dict[str, Any]:
    """The arguments of :class:`orthotune.image.data.cache.ImageDataset` that all recipes take from their settings."""
    return {
        "resolution": settings.resolution,
        "buckets": settings.buckets,
        "cache": settings.cache,
        "encode_captions": not settings.train_text_encoder,
        "caption_dropout": settings.caption_dropout,
        "tags": settings.tags,
        "masks": settings.loss_masks,
        "unmasked": settings.unmasked,
        "seed": settings.seed,
    }


def plan_image(settings: ImageSettings, job: ImageJob) -> list[str]:
    """A description of the run in lines to print; nothing is trained or written.

    Args:
        settings: of the run.
        job: the parts of the recipe.

    Raises:
        RecipeError, DataError, TargetError, BlockSizeError: as the run itself would.
    """
    from orthotune.image.loop.memory_estimate import estimate_memory

    check_precision(settings.mixed_precision)
    check_trackers(settings.trackers)
    check_optimizer(settings.optimizer)
    with quiet():
        family = open_model(settings, torch.device("cpu"))
        data, held = divided(settings, job.data(family, None))
        notes = adapt(family, settings, job)
        trainee = Trainee(family, job.hint_encoder(family) if job.hint_encoder else None)
        make_optimizer(trainee.learning(), LoopOptions.of(settings))
    seen = settings.steps * settings.batch_size * settings.gradient_accumulation
    sizes = Counter(data.bucket(index) for index in range(len(data)))
    trained, total = adapters.trainable(trainee)
    layers = {name.rpartition(".")[0] for name in trainee.learning()}
    return [
        f"model       {settings.model}: {family.name}",
        *(f"            {note}" for note in notes),
        f"trained     {trained:,} of {total:,} parameters in {len(layers)} layers, by {settings.method}",
        *([f"rates       {note}"] if (note := settings.rate_factors.note(trainee, settings.learning_rate)) else []),
        f"images      {len(data)}: " + ", ".join(f"{n} {_sized(bucket)}" for bucket, n in sorted(sizes.items())),
        *([f"held out    {held_out_counts(held)}"] if held else []),
        f"steps       {settings.steps}, on {seen:,} images ({seen / max(1, len(data)):.1f} times each)",
        *estimate_memory(family, trainee, settings),
    ]


def _sized(bucket: Bucket) -> str:
    height, width, *frames = bucket
    return f"clips of {frames[0]} frames of {width} x {height}" if frames else f"of {width} x {height}"


def divided(settings: ImageSettings, data: Dataset) -> tuple[Dataset, dict[str, Dataset]]:
    """The images to train on, and those that are held out, by domain.

    Args:
        settings: of the run.
        data: all images.

    Raises:
        RecipeError: no image would be left to train on.
        DataError: clips are asked for, and there are only images.
    """
    if settings.frames > 1 and all(len(data.bucket(index)) == 2 for index in range(len(data))):
        raise DataError(
            f"clips for frames={settings.frames}", got=f"{len(data)} images",
            needed="at least one animation, film or folder NAME.frames of so many frames", do="Leave frames out",
        )  # fmt: skip
    return hold_out(data, settings.held_out, settings.seed) if settings.held_out else (data, {})


def held_out_counts(held: Mapping[str, Dataset]) -> str:
    """How many images are held out, in words.

    Args:
        held: by domain.
    """
    counted = {"new": "images", "old": "class images"}
    return " and ".join(f"{len(held[name])} {what}" for name, what in counted.items() if name in held)


def open_model(settings: ImageSettings, device: torch.device) -> Any:
    """Load the model of a run, with frozen weights.

    Args:
        settings: name the model, its precision and the method.
        device: where the networks go.
    """
    source = str(image_world.PIPELINE) if settings.model == WORLD else settings.model
    # Full finetuning needs float32 weights: most updates of half-precision weights would be lost to rounding.
    dtype = torch.float32 if settings.method == "full" else storage_dtype(settings.mixed_precision)
    # A model whose blocks are swapped may be larger than the device; it goes there without them.
    aside = settings.swap_blocks or settings.quantization
    family = open_family(source, dtype, "cpu" if aside else device, settings.base_config)
    if settings.expert is not None:
        family.train_expert(settings.expert)
    _check_family(settings, family)
    if settings.swap_blocks:
        blocks_of(family.denoiser)  # refused before anything is encoded
    return family


def open_quantized(settings: ImageSettings, device: torch.device) -> Any:
    """As :func:`open_model`, with the quantization of the run; that function leaves the weights as they are.

    Args:
        settings: as for :func:`open_model`.
        device: where the networks go.
    """
    if settings.quantization:
        check_word(settings.quantization)
    family = open_model(settings, device)
    if settings.quantization:
        family.quantize(settings.quantization)
        family.pipeline.to(device)
    return family


def swap_blocks(family: Any, settings: ImageSettings, accelerator: Any) -> None:
    """Leave the blocks of a run that are swapped in main memory, and move the rest of the model to its device.

    Args:
        family: the pretrained model, in main memory; it fetches the blocks from now on.
        settings: of the run.
        accelerator: of the run.

    Raises:
        RecipeError: several processes, each of which would need the complete model.
    """
    if not settings.swap_blocks:
        return
    if accelerator.num_processes > 1:
        given = f"swap_blocks={settings.swap_blocks}"
        raise RecipeError(given, got=f"{accelerator.num_processes} processes", needed="one process")
    blocks = swapped(family.denoiser, settings.swap_blocks)
    away = {id(part) for block in blocks for part in block.modules()}
    for network in family.modules().values():
        for module in network.modules():
            if id(module) not in away:
                for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                    tensor.data = tensor.data.to(accelerator.device)
    family.swap = BlockSwap(blocks, accelerator.device)


def _check_family(settings: ImageSettings, family: Family) -> None:
    """Refuse what does not belong to the family before anything is encoded, generated or written."""
    others = {kind.name for kind in FAMILIES} - {family.name}
    if settings.preset in others:
        known = family.name in preset.names(settings.recipe)
        raise RecipeError(
            f"preset={settings.preset}", got=f"a model of another family, {family.name}",
            needed=f"preset={family.name}" if known else "no preset, as this family has none for this recipe",
            do=None if known else "Leave it out, and give the settings",
        )  # fmt: skip
    if family.reads and settings.recipe != "t2i":
        raise RecipeError(
            f"train {settings.recipe} with model={settings.model}", got=f"{family.name}, which reads images to edit",
            needed="train t2i with references or masks",
        )  # fmt: skip
    family.check_frames(settings.frames)
    family.check_options(LoopOptions.of(settings).loss)


def adapt(family: Any, settings: ImageSettings, job: ImageJob) -> list[str]:
    """Add the adapter of a run to a model.

    Args:
        family: the model, changed in place.
        settings: of the run.
        job: the parts of the recipe.

    Returns:
        Messages for the user.
    """
    if job.adapt:
        return job.adapt(family)
    torch.manual_seed(settings.seed)
    if settings.adapter is not None:
        return continue_adapter(family, settings.adapter)
    wanted = adapter_settings(settings)
    notes = []
    if settings.method == "lora" and settings.lora_rank is None:
        rank, parameters, equal = matching_rank(family, wanted)
        notes.append(
            f"lora_rank={rank}: {parameters:,} parameters, nearest to the {equal:,} of OFT on the same layers."
        )
    add_adapter(family, wanted)
    return notes


def adapter_settings(settings: ImageSettings) -> AdapterSettings:
    """The adapter settings in the settings of a run."""
    return AdapterSettings(
        method=settings.method,
        targets=settings.target_modules,
        block_size=settings.block_size,
        r=settings.r,
        eps=settings.eps,
        rotation=settings.rotation_options,
        lora_rank=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora=settings.lora,
        text_encoders=settings.train_text_encoder,
    )
