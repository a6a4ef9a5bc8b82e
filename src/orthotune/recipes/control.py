"""Controllable generation: edges, maps, sketches, depth, poses or landmarks decide the shape of a generated image.

A small encoder of the control image adds to the output of the first layer of the denoiser, and an adapter is trained
with it (Qiu et al. 2023, arXiv 2306.07280, section 5; the task of ControlNet, without a copy of the denoiser).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.errors import nearest
from orthotune.image.control.conditions.registry import KINDS, condition
from orthotune.image.control.data import control_examples
from orthotune.image.control.hint_encoder import HintEncoder, HintShape
from orthotune.image.data.cache import ImageDataset
from orthotune.image.families.family import Family
from orthotune.image.loop.trainee import Trainee
from orthotune.recipes.control_samples import control_sampler
from orthotune.recipes.control_scores import SampleScores
from orthotune.recipes.image_job import ImageJob, dataset_options, plan_image
from orthotune.recipes.image_run import run_image
from orthotune.recipes.image_settings import WORLD, ImageSettings
from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.rewind_images import rewound_as_asked
from orthotune.runs.record import RunRecord
from orthotune.worlds import image_folders
from orthotune.worlds.image_scores import Split

#: Number of control images for samples: of the first images of the data, on the image world of held-out images.
SHOWN = 4


class ControlSettings(ImageSettings):
    """Everything that decides a control run.

    Without ``data`` the run trains on scenes of the image world, and is scored on held-out scenes.

    Example:
        >>> ControlSettings(method="lora").hint_learning_rate
        0.004
    """

    recipe: ClassVar[str] = "control"
    newer: ClassVar[tuple[str, ...]] = tuple(key for key in ImageSettings.newer if key != "caption_dropout")
    rates: ClassVar[dict[str, float]] = {"oft": 1e-5, "coft": 1e-5, "lora": 1e-4, "full": 1e-5}

    signal: str = Field("segm", description=f"Kind of the control images: {', '.join(KINDS)}.")
    data: str = Field(WORLD, description="Folder, table or hub data set of captioned images, or image-world.")
    conditions: Path | None = Field(None, description="Folder with a control image of the same name for each image.")
    caption: str | None = Field(None, description="For images that have none.")
    broken: Literal["skip", "refuse"] = Field("skip", description="Whether unreadable images are skipped or an error.")
    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of captions that are replaced by the empty one, for guidance."
    )
    hint_learning_rate: float | None = Field(
        None, gt=0, description="Of the encoder of control images, which is not pretrained; default: learning_rate."
    )

    @model_validator(mode="after")
    def _known(self) -> ControlSettings:
        if self.signal not in KINDS:
            close = nearest(self.signal, KINDS, count=1)
            do = f"Did you mean {close[0]!r}" if close else f"Use one of {', '.join(KINDS)}"
            raise SettingError("signal", f"no control signal {self.signal!r}", do)
        if self.model != WORLD and "data" not in self.model_fields_set:
            do = "Add data=FOLDER, with images and their captions in .txt files of the same name"
            raise SettingError("model", f"no training data for model={self.model}", do)
        if self.data == WORLD and self.conditions is not None:
            raise SettingError("conditions", "conditions without the images that they belong to", "Add data=FOLDER")
        return self


def run(settings: ControlSettings, say: Callable[[str], None] = print, bar: bool = True) -> RunRecord:
    """Train with ``settings`` and return the record, which is also in ``run.json`` of the output.

    The folder ``adapter`` (or ``model``) of the output also contains the hint encoder. Load it with
    :class:`~orthotune.image.control.pipeline.ControlPipeline`.

    Args:
        settings: of the run.
        say: gets messages.
        bar: show progress bars.

    Raises:
        ConfigError: control images are missing and cannot be computed.
        DataError: an image has no control image, or one of another size.
        RecipeError, OutputError: as for all image recipes.

    Example:
        >>> run(ControlSettings(steps=20, output="runs/first")).scores_after["mask_iou"] > 0.3  # doctest: +SKIP
        True
    """
    return rewound_as_asked(settings, run_image(settings, job(settings, say), say, bar), say)


def plan(settings: ControlSettings) -> list[str]:
    """A description of the run in lines to print; nothing is trained or written."""
    return [f"signal      {settings.signal}: {KINDS[settings.signal].shows}", *plan_image(settings, job(settings))]


def job(settings: ControlSettings, say: Callable[[str], None] = print, split: Split = "validation") -> ImageJob:
    """The parts of the run that are specific to this recipe.

    Args:
        settings: of the run.
        say: gets messages.
        split: of the image world, on which the run is scored if it trains on that world.
    """
    kind, world = condition(settings.signal), settings.data == WORLD
    if world:
        examples = image_folders.control_examples(settings.signal)
        shown = image_folders.control_examples(settings.signal, SHOWN, seed=1, held_out=True)
    else:
        examples = control_examples(
            settings.data, kind, settings.conditions, caption=settings.caption, broken=settings.broken, say=say
        )
        shown = examples[:SHOWN]
    made: list[HintEncoder] = []

    def data(family: Family, folder: Path | None) -> ImageDataset:
        return ImageDataset(examples, family, condition=kind, say=say, **dataset_options(settings))

    def hint_encoder(family: Family) -> HintEncoder:
        made.append(HintEncoder(HintShape.of(family, settings.signal)))
        return made[-1]

    def keep(trainee: Trainee, folder: Path) -> None:
        encoder: Any = trainee.hint_encoder
        encoder.save(folder)

    return ImageJob(
        data=data,
        prompts=[example.caption for example in shown],
        hint_encoder=hint_encoder,
        sampler=lambda trainee: control_sampler(trainee, settings, shown, kind),
        scores=[SampleScores(settings.signal, lambda: made[-1], split)] if world and settings.model == WORLD else [],
        keep=keep,
    )
