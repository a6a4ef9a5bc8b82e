"""Teach an image model a subject from a few images, with class images that preserve the class.

DreamBooth (Ruiz et al. 2023, arXiv 2208.12242) with rotations, as in OFT (arXiv 2306.07280, section 4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from orthotune.image.adapter.prior import WithPrior
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.caption_tags import UNCHANGED
from orthotune.image.data.captions import Example, opened, read_caption_rows, with_captions, with_one_caption
from orthotune.image.data.class_images import class_images
from orthotune.image.data.image_folder import ImageFile, name_unread
from orthotune.image.data.other_trainers import lacking, of_several_lines, of_subject, repeated
from orthotune.image.families.family import Family
from orthotune.image.loop.order import Dataset
from orthotune.recipes.concepts import Concept, ratio
from orthotune.recipes.image_job import ImageJob, Score, dataset_options, plan_image
from orthotune.recipes.image_run import run_image
from orthotune.recipes.image_settings import WORLD
from orthotune.recipes.rewind_images import rewound_as_asked
from orthotune.recipes.subject_settings import SubjectSettings, warnings, word_for
from orthotune.runs.quiet import quiet
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
    return [*lines, *_class_images_lines(settings)]


def job(settings: SubjectSettings, say: Callable[[str], None] = print, bar: bool = False) -> ImageJob:
    """The parts of the run that are specific to this recipe.

    Args:
        settings: of the run.
        say: gets messages.
        bar: show progress bars.
    """
    return ImageJob(
        data=lambda family, run_dir: _data(settings, family, run_dir, say, bar),
        prompts=[concept.prompt for concept in settings.all_concepts],
        scores=_scores(settings),
        trigger=", ".join(dict.fromkeys(word_for(concept) for concept in settings.all_concepts)),
    )


def _data(
    settings: SubjectSettings, family: Family, run_dir: Path | None, say: Callable[[str], None], bar: bool
) -> Dataset:
    concepts = settings.all_concepts
    found = [_instances(settings, concept, say) for concept in concepts]
    times = ratio([concept.repeats for concept in concepts])
    if len(concepts) > 1:
        shown = (f"{len(own)} images of {one.prompt!r}" + (f", {count} of each" if count > 1 else "")
                 for one, own, count in zip(concepts, found, times, strict=True))  # fmt: skip
        say(f"Concepts: {'; '.join(shown)}.")
    repeated_examples = [one for own, count in zip(found, times, strict=True) for one in own * count]
    subject = _encoded(settings, repeated_examples, family, run_dir, say, bar)
    if not settings.prior:
        return subject
    classes: list[Example] = []
    weights: list[float] = []
    for number, concept in enumerate(concepts):
        own = _classes(settings, number, family, run_dir, say, bar) if concept.prior_weight else []
        classes += own
        weights += [concept.prior_weight or 0.0] * len(own)
    plain = {"masks": "none", "caption_dropout": 0.0, "tags": UNCHANGED}
    # A weight of all class images stays where it was, so that a run with one concept has the numbers that it had.
    common = weights[0] if len(set(weights)) == 1 else 1.0
    relative = [weight / common for weight in weights]
    encoded = _encoded(settings, classes, family, run_dir, say, bar, weights=relative, **plain)
    return WithPrior(subject, encoded, common, settings.prior_target == "base")


def _encoded(
    settings: SubjectSettings, examples: list[Example], family: Family, run_dir: Path | None,
    say: Callable[[str], None], bar: bool, **options: Any,
) -> ImageDataset:  # fmt: skip
    data = ImageDataset(examples, family, say=say, **dataset_options(settings) | options)
    if run_dir is not None:
        data.prepare(bar)
    return data


def _instances(settings: SubjectSettings, concept: Concept, say: Callable[[str], None]) -> list[Example]:
    prompt = concept.prompt
    if concept.images != WORLD:
        return _own(settings, concept, say)
    from orthotune.worlds import image, image_captions, image_folders

    images, scenes = image_folders.subject_images(), image.subject_scenes(image.load_sources())
    if not settings.instance_captions:
        return with_one_caption(images, prompt)
    name = prompt.removeprefix("a ")
    captions = [image_captions.sentence(name, scene.ink, scene.ground) for scene in scenes]
    return [Example(one, caption) for one, caption in zip(images, captions, strict=True)]


def _own(settings: SubjectSettings, concept: Concept, say: Callable[[str], None]) -> list[Example]:
    """The images of a user's folder or table."""
    source, word = concept.images, word_for(concept)
    rows = read_caption_rows(source, settings.frames)
    if Path(source).is_dir():
        name_unread(Path(source), say, settings.frames)
        if settings.instance_captions:
            for message in of_several_lines(row.origin for row in rows if isinstance(row.origin, Path)):
                say(message)
        rows = repeated(of_subject(rows, word, say), say)
    if not settings.instance_captions:
        rows = [replace(row, caption=None) for row in rows]
    rows = with_captions(rows, source, concept.prompt)
    for message in lacking(((row.name, row.caption or "") for row in rows), word):
        say(message)
    return opened(rows, source, "skip", say, settings.frames)


def _classes(
    settings: SubjectSettings, number: int, family: Family, run_dir: Path | None, say: Callable[[str], None], bar: bool
) -> list[Example]:
    """The class images of a concept, generated where they are missing."""
    concept, side = settings.all_concepts[number], settings.resolution or family.native_size
    wanted = concept.class_count or settings.class_count
    prompts = concept.class_prompts[:wanted]
    if not prompts:
        return []
    count = -(-wanted // len(prompts))
    found: list[Example] = []
    if run_dir is not None and len(prompts) > 1:
        # One message for all prompts, instead of a message and a progress bar for each.
        say(f"Class images of {len(prompts)} prompts: missing ones are generated, {count} of each.")
        bar = False
    for place, prompt in enumerate(prompts):
        if run_dir is None:
            # Nothing is generated in a dry run; placeholders have the size of the class images.
            images = [ImageFile(f"{number}/{place}/{index}", b"", side, side) for index in range(count)]
        else:
            folder = concept.class_images or _class_folder(settings, number, run_dir)
            images = class_images(
                family, folder / f"{place:02}" if len(prompts) > 1 else folder, prompt, count, model=settings.model,
                seed=settings.seed + place + 1000 * number, height=side, width=side, steps=settings.class_steps,
                guidance=settings.guidance, batch_size=settings.batch_size,
                say=say if len(prompts) == 1 else lambda message: None, bar=bar,
            )  # fmt: skip
        found += with_one_caption(images, prompt)
    return found


def _class_folder(settings: SubjectSettings, number: int, run_dir: Path) -> Path:
    folder = run_dir / CLASSES
    return folder / f"concept-{number + 1}" if len(settings.concepts) > 1 else folder


def _class_images_lines(settings: SubjectSettings) -> list[str]:
    """The lines about class images of a plan; empty without class images."""
    found = []
    for number, concept in enumerate(settings.all_concepts if settings.prior else []):
        prompts = concept.class_prompts
        if not prompts or not concept.prior_weight:
            continue
        folder = concept.class_images or _class_folder(settings, number, settings.output)
        more = f" and {len(prompts) - 1} other prompts" if len(prompts) > 1 else ""
        found.append(
            f"class       {concept.class_count} images of {prompts[0]!r}{more}, in {folder} or generated there"
        )
    return found


def _scores(settings: SubjectSettings) -> list[Score]:
    """Automatic scores exist only for the built-in image model."""
    if settings.model != WORLD or settings.instance_images != WORLD:
        return []
    with quiet():  # on import, transformers remarks on image processors that nothing here uses
        from orthotune.worlds.image_scores import SubjectScores

    return [SubjectScores("validation")]
