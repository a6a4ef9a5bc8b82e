"""Choose the strengths at which a finished image model is used, and write what was trained at these.

The gain is how much easier the images of the task became, the forgetting how much harder images became that the base
generated, both as the loss of the training on fixed draws of noise. Where the run has scores of generated images, they
are given beside both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from orthotune.errors import DataError, RecipeError
from orthotune.files.json_file import read_json, write_json
from orthotune.files.output import new_folder, temporary_folder
from orthotune.files.run_adapter import REWOUND
from orthotune.files.safetensors_file import read_tensors
from orthotune.formats.adapter_file import CONFIG_NAME, WEIGHTS_NAME
from orthotune.formats.peft.names import PREFIX
from orthotune.image.adapter.adapters import NAME
from orthotune.image.adapter.saved_adapter import load_adapter, save_adapter, save_rotations, split_rotations
from orthotune.image.control.hint_encoder import load_hint_encoder
from orthotune.image.data.batch import Batch
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.captions import Example
from orthotune.image.data.image_folder import in_memory_image
from orthotune.image.data.prompt_file import read_prompts
from orthotune.image.families.registry import open_family
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.trainee import Trainee
from orthotune.image.rewinding import ImageRewinding, batches_of, domains_of
from orthotune.operations import rewind as files
from orthotune.quantized.loading_options import place
from orthotune.recipes.image_job import ImageJob, open_quantized
from orthotune.recipes.image_run import ADAPTER, MODEL
from orthotune.recipes.image_settings import WORLD, ImageSettings
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.strength_choice import (
    FOLDER,
    ChoiceSettings,
    Rewound,
    Say,
    choose,
    exact_adapter,
    finish_run,
)
from orthotune.runs.directory import RunDirectory
from orthotune.runs.layer_strengths import LayerStrengths, layer_strengths
from orthotune.runs.optional_images import not_written
from orthotune.runs.quiet import quiet
from orthotune.runs.record import RunRecord
from orthotune.runs.rewinding_plot import draw_rewinding

#: The unit of gain and forgetting.
UNIT = "loss of the denoiser"


class ImageRewindSettings(ChoiceSettings):
    """What decides the rewinding of an image model.

    Example:
        >>> ImageRewindSettings(run="runs/subject-oft").images
        16
    """

    run: Path = Field(description="Run directory of a finished training of an image model.")
    old: Path | None = Field(
        None, description="Text file with one prompt per line, not about the task: the base generates images of these. "
        "Default: the class images of the run, or prompts of image-world.",
    )  # fmt: skip
    images: Annotated[int, Field(gt=0)] = Field(16, description="Images of each domain at most.")
    draws: Annotated[int, Field(ge=2)] = Field(
        16, description="Draws of noise and time of each image; half of them choose the strengths, half measure them."
    )
    step_images: Annotated[int, Field(gt=0)] = Field(16, description="Images of each domain in a step of `steps`.")


def run(settings: ImageRewindSettings, say: Say = print, *, overwrite: bool = False) -> Rewound:
    """Choose strengths for a finished run of an image model and write what was trained at these.

    Args:
        settings: the run, and how to choose.
        say: is given one line of text at a time.
        overwrite: replace what is at the output.

    Returns:
        The record that is also in ``rewind.json``. The output contains ``adapter`` too (``model`` after full
        finetuning), and ``rewind.png``, the curve.

    Raises:
        RecipeError: no finished run of an image model there.
        DataError: the images of the run are missing, or no prompts for images of the base.
        ConfigError: the adapter contains parts that have no strength.
        OutputError: the output exists already or cannot be written.

    Example:
        >>> run(ImageRewindSettings(run="runs/subject-oft")).strengths  # doctest: +SKIP
        {'all': 0.7}
    """
    trained, job = _finished(settings.run)
    out = settings.output or settings.run / FOLDER
    with new_folder(out, overwrite=overwrite, named="output") as folder:
        with quiet():
            trainee, layers, base = _loaded(settings.run, trained, job)
            batches = _batches(settings, trained, job, trainee, layers)
        notes = ["the images of the task are those of the training, at draws of noise that no strength was chosen by."]
        make = partial(ImageRewinding, trainee, layers, batches)
        loss, half = LoopOptions.of(trained).loss, settings.draws // 2
        # Numbers that no training step has as its seed.
        first = 10_000 + settings.seed
        draws = {"choose": range(first, first + half), "measure": range(first + half, first + 2 * half)}
        halves = {name: partial(make, numbers, loss) for name, numbers in draws.items()}
        found, strengths = choose(settings, halves, settings.step_images, say)
        scores = _scores(job, trainee, layers, {
            "as trained": dict.fromkeys(layers.names, 1.0), "one strength": dict.fromkeys(layers.names, found.one),
            "chosen": strengths,
        })  # fmt: skip
        counted = {domain: 2 * half * sum(len(batch.captions) for batch in own)
                   for domain, own in batches.items()}  # fmt: skip
        more = {"notes": notes + found.notes, "draws": counted, "scores": scores, "unit": UNIT}
        found = found.model_copy(update=more)
        for note in found.notes:
            say(note)
        _write(settings, trained, job, trainee, layers, strengths, base is not None, folder)
        write_json(folder / REWOUND, found.model_dump(mode="json"))
        title, image = f"{settings.run.name}: strength after training", "rewind.png"
        draw = partial(draw_rewinding, found.curve, found.rows, folder / image, title, UNIT)
        if missing := not_written(draw, image):
            say(missing)
    return found


def finish(settings: ImageSettings, say: Say = print) -> RunRecord:
    """Rewind a run that has just finished, as its setting ``rewind`` asks, and add the figures to its record.

    Args:
        settings: of the run.
        say: called with each message.

    Returns:
        The record of the run, with ``rewound``.

    Raises:
        OutputError: another process is at work in the run directory, or another rewinding lies there.
        DataError: no prompts for images of the base.
    """
    by = "one" if settings.rewind == "auto" else settings.rewind
    directory = RunDirectory(settings.output)
    asked = ImageRewindSettings.model_validate(
        {"run": directory.path, "by": by, "seed": settings.seed, "old": settings.rewind_prompts}
    )
    return finish_run(directory, asked, lambda: run(asked, say), say)


def rewound_as_asked(settings: ImageSettings, record: RunRecord, say: Say) -> RunRecord:
    """The record of a finished run, which is rewound if its setting ``rewind`` asks for that.

    Args:
        settings: of the run.
        record: of the run.
        say: called with each message.
    """
    return finish(settings, say) if settings.rewind != "none" and record.rewound is None else record


class FinishedAtStrengths:
    """A finished run of an image model, which generates images with what was trained at any strength.

    Args:
        path: its directory.

    Raises:
        RecipeError: no finished run of an image model there, or one that needs condition images.
        ConfigError: the adapter contains parts that have no strength.

    Example:
        >>> FinishedAtStrengths(Path("runs/subject-oft")).images("a sks dog", [0], 0.5)[0].shape  # doctest: +SKIP
        torch.Size([3, 512, 512])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._trained, self._job = _finished(path)
        if self._job.hint_encoder is not None:
            raise RecipeError(
                f"{path}", got="a run with condition images", needed="a run whose images follow a prompt alone"
            )
        self._trainee, self._layers, self._base = _loaded(path, self._trained, self._job)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trained layers."""
        return self._layers.names

    def images(
        self, prompt: str, seeds: Sequence[int], strength: float | Mapping[str, float]
    ) -> Sequence[torch.Tensor]:
        """Images of a prompt.

        Args:
            prompt: a text.
            seeds: of the noise.
            strength: 0 is the base, 1 as trained; or layer -> strength for some layers, the others keep 1.

        Returns:
            An image, uint8 ``[3, H, W]``, for each seed.
        """
        self._layers.set(self._strengths(strength))
        family: Any = self._trainee.family
        side = self._trained.resolution or family.native_size
        found: Sequence[torch.Tensor] = family.generate(
            [prompt] * len(seeds), list(seeds), steps=self._trained.sample_steps, guidance=self._trained.guidance,
            height=side, width=side, batch_size=self._trained.batch_size,
        )  # fmt: skip
        return found

    def write(self, strength: float | Mapping[str, float], out: Path) -> None:
        """Write what was trained at strengths; what is opened here is of no use afterwards.

        Args:
            strength: as for :meth:`images`.
            out: the new folder.

        Raises:
            OutputError: ``out`` exists already or cannot be written to.
        """
        settings = ImageRewindSettings.model_validate({"run": self.path})
        with new_folder(out) as folder:
            _write(settings, self._trained, self._job, self._trainee, self._layers, self._strengths(strength),
                   self._base is not None, folder)  # fmt: skip

    def _strengths(self, strength: float | Mapping[str, float]) -> dict[str, float]:
        given = strength if isinstance(strength, Mapping) else dict.fromkeys(self.names, strength)
        return {name: float(given.get(name, 1.0)) for name in self.names}


def _finished(path: Path) -> tuple[ImageSettings, ImageJob]:
    record = read_json(path / "run.json") if (path / "run.json").is_file() else {}
    recipe = RECIPES.get(record.get("recipe", ""))
    if recipe is None or recipe.text or not ((path / ADAPTER).is_dir() or (path / MODEL).is_dir()):
        raise RecipeError(
            f"{path}", got="no finished run of an image model in it",
            do="Name the output of such a run: the folder that holds run.json and adapter",
        )  # fmt: skip
    kind: Any = recipe.settings_class()
    # A fit of magnitudes is a run of its recipe, and has a setting more: its adapter.
    given = {key: value for key, value in record["settings"].items() if key in kind.model_fields}
    settings = kind(**given | {"output": path})
    return settings, recipe.job().job(settings, lambda _: None)


def _loaded(path: Path, trained: ImageSettings, job: ImageJob) -> tuple[Trainee, LayerStrengths, nn.Module | None]:
    """The trained networks, their strengths, and the networks before full finetuning."""
    family = open_quantized(trained, place())
    if (path / MODEL).is_dir():
        finished = open_family(path / MODEL, torch.float32, place())
        for part in finished.modules().values():
            part.requires_grad_(True)
        if not trained.train_text_encoder:
            for encoder in finished.text_encoders.values():
                encoder.requires_grad_(False)
        trainee = Trainee(finished, _hint_encoder(job, finished, path / MODEL)).eval()
        base = Trainee(family, trainee.hint_encoder)
        base.text_encoders = nn.ModuleDict({name: family.text_encoders[name] for name in trainee.text_encoders})
        return trainee, layer_strengths(trainee, base=base), base
    with temporary_folder() as beside:
        load_adapter(family, exact_adapter(path / ADAPTER, trained.method, beside))
    trainee = Trainee(family, _hint_encoder(job, family, path / ADAPTER)).eval()
    return trainee, layer_strengths(trainee, NAME), None


def _hint_encoder(job: ImageJob, family: Any, folder: Path) -> nn.Module | None:
    if job.hint_encoder is None:
        return None
    encoder = job.hint_encoder(family)
    encoder.load_state_dict(load_hint_encoder(folder).state_dict())
    return encoder.requires_grad_(False).to(place())


def _batches(
    settings: ImageRewindSettings, trained: ImageSettings, job: ImageJob, trainee: Trainee, layers: LayerStrengths
) -> dict[str, list[Batch]]:
    layers.set(dict.fromkeys(layers.names, 0.0))  # class images and latents are the base's
    family: Any = trainee.family
    new, old = domains_of(job.data(family, settings.run))
    if settings.old is not None or old is None:
        old = _generated(settings, trained, family)
    return {name: batches_of(data, trained.batch_size, settings.images, place())
            for name, data in (("new", new), ("old", old))}  # fmt: skip


def _generated(settings: ImageRewindSettings, trained: ImageSettings, family: Any) -> ImageDataset:
    """Images that the base generates from prompts that are not about the task."""
    if settings.old is not None:
        prompts = read_prompts(settings.old, settings.images, f"old={settings.old}")
    elif trained.model == WORLD:
        from orthotune.worlds.image_captions import prompts as world_prompts

        prompts = [prompt.text for prompt in world_prompts(settings.images, seed=1)]
    else:
        raise DataError(
            f"prompts for images of {trained.model}", got="none",
            needed="a text file with one prompt per line, not about the task", do="Name it: --old prompts.txt",
        )  # fmt: skip
    side = trained.resolution or family.native_size
    images = family.generate(
        prompts, list(range(settings.seed, settings.seed + len(prompts))), steps=trained.sample_steps,
        guidance=trained.guidance, height=side, width=side, batch_size=trained.batch_size,
    )  # fmt: skip
    examples = [
        Example(in_memory_image(image.permute(1, 2, 0).cpu().numpy(), f"base-{number:02}"), prompt)
        for number, (image, prompt) in enumerate(zip(images, prompts, strict=True))
    ]
    return ImageDataset(
        examples, family, side, encode_captions=not trained.train_text_encoder, seed=settings.seed, say=lambda _: None
    )


def _scores(
    job: ImageJob, trainee: Trainee, layers: LayerStrengths, choices: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """The scores at each choice; choices that came out the same are generated once, they draw the same noise."""
    found: dict[str, dict[str, float]] = {}
    for name, strengths in choices.items() if job.scores else ():
        same = next((other for other in found if choices[other] == strengths), None)
        if same is not None:
            found[name] = dict(found[same])
            continue
        layers.set(strengths)
        found[name] = {key: value for score in job.scores for key, value in score(1, trainee.family).items()}
    return found


def _write(
    settings: ImageRewindSettings, trained: ImageSettings, job: ImageJob, trainee: Trainee, layers: LayerStrengths,
    strengths: Mapping[str, float], full: bool, folder: Path,
) -> None:  # fmt: skip
    family: Any = trainee.family
    layers.set(strengths)
    if full:
        family.pipeline.save_pretrained(folder / MODEL)
        kept = folder / MODEL
    elif trained.method == "lora":
        kept = folder / ADAPTER
        kept.mkdir()
        _keep_lora(trainee, layers, strengths)
        save_adapter(family, kept)
    else:
        kept = folder / ADAPTER
        _keep_rotations(settings.run / ADAPTER, family, strengths, kept)
    if job.keep:
        job.keep(trainee, kept)


@torch.no_grad()
def _keep_lora(trainee: nn.Module, layers: LayerStrengths, strengths: Mapping[str, float]) -> None:
    """Multiply the second factor of each layer, which then has strength 1."""
    from peft.tuners.lora import LoraLayer

    layers.set(dict.fromkeys(layers.names, 1.0))
    by_module = {name: module for name, module in trainee.named_modules() if isinstance(module, LoraLayer)}
    for name, module in by_module.items():
        factor = next(t for layer, t in strengths.items() if name.endswith(layer))
        module.lora_B[NAME].weight.mul_(factor)


def _keep_rotations(adapter: Path, family: Any, strengths: Mapping[str, float], out: Path) -> None:
    """Write the rotations of one network, or of each of several, at strengths of layers."""
    own: dict[str, dict[str, float]] = {}
    for name, t in strengths.items():
        component, _, rest = name.partition(".")
        if component == "text_encoders":
            component, _, rest = rest.partition(".")
        else:
            component = family.denoiser_name
        own.setdefault(component, {})[rest.removeprefix("base_model.model.")] = t
    with temporary_folder() as beside:
        parts = split_rotations(adapter, beside)
        if not parts:
            files.rewind(adapter, next(iter(own.values())), out)
            return
        written = {name: files.rewind(part, own[name], beside / f"{name}-rewound").out for name, part in parts.items()}
        out.mkdir()
        save_rotations(
            out, {name: {key.removeprefix(PREFIX): tensor for key, tensor in read_tensors(path / WEIGHTS_NAME).items()}
                  for name, path in written.items()},
            {name: read_json(path / CONFIG_NAME) for name, path in written.items()},
        )  # fmt: skip
