"""Text to image: a model learns from captioned pictures, be it a style, a domain or new words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.captions import Example, read_examples
from orthotune.image.families.family import Family
from orthotune.recipes.image_job import ImageJob, plan_image
from orthotune.recipes.image_run import run_image
from orthotune.recipes.image_settings import WORLD, ImageSettings
from orthotune.recipes.method_settings import SettingError
from orthotune.runs.record import RunRecord

#: Captions of the data that are drawn as samples, when no prompts are given.
SHOWN = 4


class TextToImageSettings(ImageSettings):
    """Everything that decides a text-to-image run.

    Without ``data`` it learns the word "nine" from captioned digits of the image world.

    Example:
        >>> TextToImageSettings(method="lora").data
        'image-world'
    """

    recipe: ClassVar[str] = "t2i"

    data: str = Field(
        WORLD,
        description="Folder of pictures with .txt captions, a .jsonl or .parquet table, a hub data set NAME or "
        "NAME:SPLIT, or image-world.",
    )
    caption: str | None = Field(None, description="Of pictures that have none.")
    broken: Literal["skip", "refuse"] = Field("skip", description="What happens to pictures that cannot be read.")
    caption_dropout: float = Field(0.1, ge=0, le=1, description="Share of captions that are emptied, for guidance.")
    crop: Literal["centre", "random"] = Field("centre", description="Where a picture that does not fit is cut.")
    cache_dir: Path | None = Field(None, description="Keeps encoded pictures and captions for further runs.")

    @model_validator(mode="after")
    def _known(self) -> TextToImageSettings:
        if self.model != WORLD and "data" not in self.model_fields_set:
            do = "Say data=FOLDER, with a picture and its caption in a .txt file of the same name"
            raise SettingError("model", f"nothing to learn from for model={self.model}", do)
        if self.cache_dir is not None and not self.cache:
            raise SettingError("cache_dir", "cache_dir without a cache", "Leave out cache=false or cache_dir")
        return self


def run(settings: TextToImageSettings, say: Callable[[str], None] = print, bar: bool = True) -> RunRecord:
    """Train as ``settings`` say and return the record that is also in ``run.json`` of the output.

    Raises:
        DataError: no pictures, pictures without captions, or a table that is not understood; the file is named.
        OrthotuneError: as for every image run.

    Example:
        >>> run(TextToImageSettings(steps=20, output="runs/nines")).steps  # doctest: +SKIP
        20
    """
    return run_image(settings, job(settings, say, bar), say, bar)


def plan(settings: TextToImageSettings) -> list[str]:
    """What :func:`run` would train, in lines to print; nothing is trained or written."""
    return plan_image(settings, job(settings))


def job(settings: TextToImageSettings, say: Callable[[str], None] = print, bar: bool = False) -> ImageJob:
    """What this recipe adds to the shared run; on the image world it is scored."""
    examples = _examples(settings, say)

    def data(family: Family, home: Path | None) -> ImageDataset:
        found = ImageDataset(
            examples, family, settings.resolution, buckets=settings.buckets, crop=settings.crop, cache=settings.cache,
            cache_dir=settings.cache_dir, encode_captions=not settings.train_text_encoder,
            caption_dropout=settings.caption_dropout, seed=settings.seed, say=say,
        )  # fmt: skip
        if home is not None:
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
        return read_examples(settings.data, caption=settings.caption, broken=settings.broken, say=say)
    from orthotune.worlds.image_folders import captioned_digits

    return captioned_digits()
