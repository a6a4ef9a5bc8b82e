"""Text to image: finetune an image model on captioned images, for a style, a domain or new words.

Editing models are trained by the same recipe: each image comes with the references that it was made of, and its caption
is the instruction; models of inpainting read a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.errors import RecipeError
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.captions import Example, read_caption_rows, read_examples
from orthotune.image.editing.dataset import EditingDataset
from orthotune.image.editing.examples import RANDOM, EditExample, read_edits
from orthotune.image.families.family import Family
from orthotune.image.families.registry import reads_of
from orthotune.recipes.editing_samples import editing_sampler
from orthotune.recipes.image_job import ImageJob, dataset_options, plan_image
from orthotune.recipes.image_run import run_image
from orthotune.recipes.image_settings import WORLD, ImageSettings
from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.rewind_images import rewound_as_asked
from orthotune.runs.record import RunRecord
from orthotune.worlds.image import PIPELINE

#: Number of captions of the data that are used as sample prompts if none are given.
SHOWN = 4


class TextToImageSettings(ImageSettings):
    """The settings of a text-to-image run.

    Without ``data`` the run trains on captioned digits of the image world, with the new word "nine".

    Example:
        >>> TextToImageSettings(method="lora").data
        'image-world'
    """

    recipe: ClassVar[str] = "t2i"
    newer: ClassVar[tuple[str, ...]] = (
        *(key for key in ImageSettings.newer if key != "caption_dropout"), "references", "masks"
    )  # fmt: skip

    data: str = Field(
        WORLD,
        description="Folder of images with .txt captions, a .jsonl or .parquet table, a hub data set NAME or "
        "NAME:SPLIT, or image-world.",
    )
    references: Path | list[Path] | None = Field(
        None,
        description="For editing models: folder with the image to edit of the same name for each image of data, or up "
        "to three such folders. Tables name them in the column reference.",
    )
    masks: str | None = Field(
        None,
        description="For models of inpainting: folder with a mask of the same name for each image, white where is "
        "painted, or random.",
    )
    caption: str | None = Field(None, description="For images that have none.")
    broken: Literal["skip", "refuse"] = Field("skip", description="Whether unreadable images are skipped or an error.")
    caption_dropout: float = Field(
        0.1, ge=0, le=1, description="Share of captions that are replaced by the empty one, for guidance."
    )
    crop: Literal["centre", "random"] = Field("centre", description="Where images are cropped.")
    cache_dir: Path | None = Field(None, description="Stores encoded images and captions for further runs.")

    @model_validator(mode="after")
    def _known(self) -> TextToImageSettings:
        if self.model != WORLD and "data" not in self.model_fields_set:
            do = "Add data=FOLDER, with images and their captions in .txt files of the same name"
            raise SettingError("model", f"no training data for model={self.model}", do)
        if self.cache_dir is not None and not self.cache:
            raise SettingError("cache_dir", "cache_dir without a cache", "Leave out cache=false or cache_dir")
        if self.data == WORLD and self.edits:
            raise SettingError("references", "references or masks without images", "Add data=FOLDER")
        if self.masks in ("none", "alpha", "files") and not Path(self.masks).exists():
            fault = (
                f"masks={self.masks}: masks names a folder, whose masks are white where a model of inpainting paints"
            )
            raise SettingError("masks", fault, f"Write loss_masks={self.masks} for where the loss counts")
        return self

    @property
    def edits(self) -> bool:
        """Whether the settings name references or masks."""
        return self.references is not None or self.masks is not None


def run(settings: TextToImageSettings, say: Callable[[str], None] = print, bar: bool = True) -> RunRecord:
    """Train with ``settings`` and return the record, which is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        say: gets messages.
        bar: show progress bars.

    Raises:
        DataError: there are no images, captions are missing, or a table is faulty; the message names the file.
        OrthotuneError: as for all image runs.

    Example:
        >>> run(TextToImageSettings(steps=20, output="runs/nines")).steps  # doctest: +SKIP
        20
    """
    return rewound_as_asked(settings, run_image(settings, job(settings, say, bar), say, bar), say)


def plan(settings: TextToImageSettings) -> list[str]:
    """A description of the run in lines to print; nothing is trained or written."""
    return plan_image(settings, job(settings))


def job(settings: TextToImageSettings, say: Callable[[str], None] = print, bar: bool = False) -> ImageJob:
    """The parts of the run that are specific to this recipe.

    Args:
        settings: of the run.
        say: gets messages.
        bar: show progress bars.
    """
    if settings.data != WORLD and (settings.edits or _reads_edits(settings, say)):
        return _editing_job(settings, say, bar)
    examples = _examples(settings, say)

    def data(family: Family, run_dir: Path | None) -> ImageDataset:
        if family.reads:
            given = f"data={settings.data} for {family.name}"
            needed = "references=FOLDER, or reference" if family.reads == "references" else "masks=FOLDER, or mask"
            raise RecipeError(given, got="images with captions alone", needed=f"{needed} in each row of a table")
        found = ImageDataset(examples, family, **_options(settings), say=say)
        if run_dir is not None:
            found.prepare(bar)
        return found

    scores = []
    if settings.model == WORLD and settings.data == WORLD:
        from orthotune.worlds.image_word_scores import WordScores

        scores = [WordScores("validation")]
    prompts = list(dict.fromkeys(example.caption for example in examples))[:SHOWN]
    return ImageJob(data=data, prompts=prompts, scores=scores)


def _examples(settings: TextToImageSettings, say: Callable[[str], None]) -> list[Example]:
    if settings.data != WORLD:
        return read_examples(
            settings.data, caption=settings.caption, broken=settings.broken, say=say, frames=settings.frames
        )
    from orthotune.worlds.image_folders import captioned_digits

    return captioned_digits()


def _options(settings: TextToImageSettings) -> dict[str, Any]:
    return dataset_options(settings) | {"crop": settings.crop, "cache_dir": settings.cache_dir}


def _reads_edits(settings: TextToImageSettings, say: Callable[[str], None]) -> bool:
    """Whether the rows of a table have references or masks of their own, and the model reads such."""
    rows = read_caption_rows(settings.data, settings.frames)
    if not any(row.references or row.mask is not None for row in rows[:1]):
        return False
    model = str(PIPELINE) if settings.model == WORLD else settings.model
    if reads_of(model, settings.base_config):
        return True
    say(f"The references or masks in {settings.data} are not read: {settings.model} reads captions alone.")
    return False


def _editing_job(settings: TextToImageSettings, say: Callable[[str], None], bar: bool) -> ImageJob:
    if settings.train_text_encoder:
        raise RecipeError(
            "train_text_encoder of an editing model", needed="text encoders that stay frozen, whose outputs are kept"
        )
    if settings.rewind != "none":
        raise RecipeError("rewind of an editing model", needed="a run without it: images of the base need references")
    named = settings.references
    folders = [] if named is None else named if isinstance(named, list) else [named]
    examples: list[EditExample] = read_edits(
        settings.data, folders, settings.masks, caption=settings.caption, broken=settings.broken, say=say
    )
    masks = settings.masks == RANDOM

    def data(family: Family, run_dir: Path | None) -> EditingDataset:
        if not family.reads:
            got = f"a {family.name} model, which reads captions alone"
            raise RecipeError(f"references or masks for {settings.model}", got=got, needed="an editing model")
        found = EditingDataset(examples, family, random_masks=masks, **_options(settings), say=say)
        if run_dir is not None:
            found.prepare(bar)
        return found

    shown = examples[:SHOWN]
    return ImageJob(
        data=data,
        prompts=[example.caption for example in shown],
        sampler=lambda trainee: editing_sampler(trainee.family, settings, shown, masks),
    )
