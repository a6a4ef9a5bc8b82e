"""Teach an image model a subject from a few images, with class images that preserve the class.

DreamBooth (Ruiz et al. 2023, arXiv 2208.12242) with rotations, as in OFT (arXiv 2306.07280, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from orthotune.image.adapter.prior import WithPrior
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.captions import Example, opened, read_caption_rows, with_captions, with_one_caption
from orthotune.image.data.class_images import class_images
from orthotune.image.data.image_folder import ImageFile, name_unread
from orthotune.image.data.other_trainers import lacking, of_subject, repeated
from orthotune.image.families.family import Family
from orthotune.image.loop.order import Dataset
from orthotune.recipes.image_job import ImageJob, Score, plan_image
from orthotune.recipes.image_run import run_image
from orthotune.recipes.image_settings import WORLD
from orthotune.recipes.rewind_images import rewound_as_asked
from orthotune.recipes.subject_settings import SubjectSettings, warnings
from orthotune.runs.record import RunRecord

#: The folder of generated class images in the output of the run.
CLASSES = "class-images"


def run(settings: SubjectSettings, say: Callable[[str], None] = print, bar: bool = True) -> RunRecord:
    """Train and return the record; the output is that of :func:`orthotune.recipes.image_run.run_image`.

    Args:
        settings: of the run.
        say: gets messages.
        bar: show progress bars.

    Raises:
        DataError: there are no images, or class images were generated with other settings.
        OrthotuneError: as for all image runs.

    Example:
        >>> run(SubjectSettings(steps=20, output="runs/nine")).steps  # doctest: +SKIP
        20
    """
    for warning in warnings(settings):
        say(warning)
    return rewound_as_asked(settings, run_image(settings, job(settings, say, bar), say, bar), say)


def plan(settings: SubjectSettings) -> list[str]:
    """A description of the run in lines to print; nothing is generated, trained or written."""
    lines = [*warnings(settings), *plan_image(settings, job(settings))]
    return [*lines, *_class_images_line(settings)]


def job(settings: SubjectSettings, say: Callable[[str], None] = print, bar: bool = False) -> ImageJob:
    """The parts of the run that are specific to this recipe.

    Args:
        settings: of the run.
        say: gets messages.
        bar: show progress bars.
    """
    return ImageJob(
        data=lambda family, run_dir: _data(settings, family, run_dir, say, bar),
        prompts=[settings.instance_prompt],
        scores=_scores(settings),
    )


def _data(
    settings: SubjectSettings, family: Family, run_dir: Path | None, say: Callable[[str], None], bar: bool
) -> Dataset:
    subject = _encoded(settings, _instances(settings, say), family, run_dir, say, bar)
    if not settings.prior:
        return subject
    classes = _encoded(settings, _classes(settings, family, run_dir, say, bar), family, run_dir, say, bar)
    return WithPrior(subject, classes, settings.prior_weight, settings.prior_target == "base")


def _encoded(
    settings: SubjectSettings, examples: list[Example], family: Family, run_dir: Path | None,
    say: Callable[[str], None], bar: bool,
) -> ImageDataset:  # fmt: skip
    data = ImageDataset(
        examples, family, settings.resolution, buckets=settings.buckets, cache=settings.cache,
        encode_captions=not settings.train_text_encoder, seed=settings.seed, say=say,
    )  # fmt: skip
    if run_dir is not None:
        data.prepare(bar)
    return data


def _instances(settings: SubjectSettings, say: Callable[[str], None]) -> list[Example]:
    prompt = settings.instance_prompt
    if settings.instance_images != WORLD:
        return _own(settings, say)
    from orthotune.worlds import image, image_captions, image_folders

    images, scenes = image_folders.subject_images(), image.subject_scenes(image.load_sources())
    if not settings.instance_captions:
        return with_one_caption(images, prompt)
    name = prompt.removeprefix("a ")
    captions = [image_captions.sentence(name, scene.ink, scene.ground) for scene in scenes]
    return [Example(one, caption) for one, caption in zip(images, captions, strict=True)]


def _own(settings: SubjectSettings, say: Callable[[str], None]) -> list[Example]:
    """The images of a user's folder or table."""
    source, prompt, word = settings.instance_images, settings.instance_prompt, settings.subject
    rows = read_caption_rows(source)
    if Path(source).is_dir():
        name_unread(Path(source), say)
        rows = repeated(of_subject(rows, word, say), say)
    if not settings.instance_captions:
        rows = [replace(row, caption=None) for row in rows]
    rows = with_captions(rows, source, prompt)
    for message in lacking(((row.name, row.caption or "") for row in rows), word):
        say(message)
    return opened(rows, source, "skip", say)


def _classes(
    settings: SubjectSettings, family: Family, run_dir: Path | None, say: Callable[[str], None], bar: bool
) -> list[Example]:
    side = settings.resolution or family.native_size
    prompts = settings.class_prompts[: settings.class_count]
    count = -(-settings.class_count // len(prompts))
    found: list[Example] = []
    if run_dir is not None and len(prompts) > 1:
        # One message for all prompts, instead of a message and a progress bar for each.
        say(f"Class images of {len(prompts)} prompts: missing ones are generated, {count} of each.")
        bar = False
    for number, prompt in enumerate(prompts):
        if run_dir is None:
            # Nothing is generated in a dry run; placeholders have the size of the class images.
            images = [ImageFile(str(number), b"", side, side) for number in range(count)]
        else:
            folder = settings.class_images or run_dir / CLASSES
            images = class_images(
                family, folder / f"{number:02}" if len(prompts) > 1 else folder, prompt, count, model=settings.model,
                seed=settings.seed + number, height=side, width=side, steps=settings.class_steps,
                guidance=settings.guidance, batch_size=settings.batch_size,
                say=say if len(prompts) == 1 else lambda message: None, bar=bar,
            )  # fmt: skip
        found += with_one_caption(images, prompt)
    return found


def _class_images_line(settings: SubjectSettings) -> list[str]:
    """The line about class images of a plan; empty without class images."""
    if not settings.prior:
        return []
    folder, prompts = settings.class_images or settings.output / CLASSES, settings.class_prompts
    more = f" and {len(prompts) - 1} other prompts" if len(prompts) > 1 else ""
    return [f"class       {settings.class_count} images of {prompts[0]!r}{more}, in {folder} or generated there"]


def _scores(settings: SubjectSettings) -> list[Score]:
    """Automatic scores exist only for the built-in image model."""
    if settings.model != WORLD or settings.instance_images != WORLD:
        return []
    from orthotune.worlds.image_scores import SubjectScores

    return [SubjectScores("validation")]
