"""Classification of images: folders with one subfolder for each class, or a table of images and labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoImageProcessor, AutoModelForImageClassification

from orthotune.errors import DataError
from orthotune.image.data.image_folder import Broken, ImageFile, open_images, read_folder
from orthotune.metrics.classes import class_scores, need_scikit_learn
from orthotune.recipes.class_labels import Labelled, classes_of, encoded, names_in
from orthotune.recipes.head_job import head_trainer, scores_of
from orthotune.recipes.head_settings import HeadSettings
from orthotune.recipes.labelled_data import (
    Split,
    forgetting_notes,
    listed,
    load_rows,
    require_columns,
    rows_counted,
    split,
)
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.runs.curve import draw_scores
from orthotune.runs.metrics_log import Score
from orthotune.runs.record import RunRecord
from orthotune.text.causal_model import no_model
from orthotune.text.headed_model import load_headed, outputs_of, read_config, save_with_config
from orthotune.text.trainer import RunTrainer
from orthotune.worlds.image_classes import COLOURED, coloured_digits
from orthotune.worlds.tiny_models import tiny_model

TABLES = (".csv", ".jsonl", ".json", ".parquet")


class VisionSettings(HeadSettings):
    """The settings of a run on classes of images.

    Without a model, a tiny vision transformer without pretraining learns the colours of digits.

    Example:
        >>> VisionSettings(method="lora").data
        'image-world/colours'
    """

    recipe: ClassVar[str] = "vision"
    world: ClassVar[str] = "image-world"
    absent: ClassVar[tuple[str, ...]] = ("eval_tokens", "max_length")

    model: str = Field(description="Path or hub name of an image model with a classifier or without one, or tiny-vit.")
    data: str = Field(
        description="Folder with a subfolder of images for each class, table with the columns image (a path) and "
        "label, hub name, or image-world/colours."
    )
    broken: Broken = Field("refuse", description="Whether unreadable images are skipped or an error.")


def run(
    settings: VisionSettings,
    say: Say = print,
    callbacks: Callbacks = (),
    bar: bool = True,
    adapt: Callable[[Any, list[str]], Any] | None = None,
) -> RunRecord:
    """Train as ``settings`` say and return the record that is also in ``run.json`` of the output.

    Args:
        settings: of the run.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.
        adapt: puts on what is trained instead of the adapter of the settings, given the model and the notes.

    Raises:
        DataError: images or labels that cannot be used; names the file or row.
        OrthotuneError: as for every run.

    Example:
        >>> run(VisionSettings(steps=60, output="runs/first")).scores_after["accuracy"]  # doctest: +SKIP
        0.4
    """
    need_scikit_learn()
    return run_text(settings, job(settings, say, adapt), say, callbacks, bar)


def job(settings: VisionSettings, say: Say = print, adapt: Callable[[Any, list[str]], Any] | None = None) -> TextJob:
    """What this recipe adds to the shared run: images, a classifier, and its scores.

    Args:
        settings: of the run.
        say: gets a message about images that are skipped.
        adapt: as of :func:`run`.
    """
    source, new = str(tiny_model(settings.model) or source_of(settings)), list[str]()
    data = split(settings, lambda source: _read(source, settings.broken, say))
    examples = [*data.train, *(data.domains.get("new", []) if settings.eval_data is None else [])]

    @cache
    def config() -> Any:
        found = read_config(source)
        names = names_in(examples, "single", classes_of(found))
        found.id2label, found.label2id = dict(enumerate(names)), {name: number for number, name in enumerate(names)}
        return found

    def model(dtype: torch.dtype) -> Any:
        kind = AutoModelForImageClassification
        made, new[:] = load_headed(kind, source, dtype, config(), settings.seed, settings.quantization)
        return made

    return TextJob(
        data=lambda: (data, config()),
        tokenizer=lambda: load_image_processor(source),
        model=model,
        trainer=lambda given: _trainer(settings, given, new),
        notes=forgetting_notes(settings),
        adapt=adapt,
        measures=lambda trainer: [scores_of(trainer.eval_dataset, partial(_scores, trainer))],
        task=None,  # PEFT's models for classification take tokens
        curve=partial(draw_scores, names=["accuracy"], heading="Held-out images"),
        score=Score("accuracy"),
        save=save_with_config,
    )


def load_image_processor(source: str) -> Any:
    """The processor of images in ``source``.

    Args:
        source: path or hub name.

    Raises:
        RecipeError: no processor is there.
    """
    try:
        return AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise no_model(source, fault) from fault


def _read(source: str, broken: Broken, say: Say) -> list[Labelled]:
    path = Path(source)
    if source == COLOURED or source.startswith(f"{COLOURED}/"):
        return [Labelled(f"{source}, {image.name}", image, name) for image, name in coloured_digits(source)]
    if path.is_dir():
        return [_of_folder(source, image) for image in read_folder(path, broken, say)]
    if path.is_file() and path.suffix not in TABLES:
        needed = f"a folder, or a table ending in {', '.join(TABLES)}"
        raise DataError(f"data {source!r}", got=f"suffix {path.suffix!r}", needed=needed)
    rows = load_rows(source)
    require_columns(rows, ["image", "label"], source)
    origins = [(place, origin_of(place, row["image"], path.parent)) for place, row in rows]
    images = open_images(origins, f"of {source}", broken, say)
    return [
        Labelled(place, image, row["label"])
        for (place, row), image in zip(rows, images, strict=True)
        if image is not None
    ]


def _of_folder(source: str, image: ImageFile) -> Labelled:
    name, slash, _ = image.name.partition("/")
    if not slash:
        raise DataError(
            f"image {image.name} in {source}", got="an image outside of the folders of the classes",
            needed="a subfolder for each class", do="Move the image into the folder of its class",
        )  # fmt: skip
    return Labelled(f"{source}, {image.name}", image, name)


def origin_of(place: str, value: Any, folder: Path) -> Path | bytes:
    """An image of a row: a path below the folder of its table, or bytes as parquet files and hub data sets have.

    Args:
        place: of the row, for messages.
        value: of its column.
        folder: of the table.

    Raises:
        DataError: neither a path nor bytes.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return folder / value
    if hasattr(value, "save"):  # an image of Pillow, as hub data sets decode
        from io import BytesIO

        file = BytesIO()
        value.save(file, format="PNG")
        return file.getvalue()
    raise DataError(f"{place}: column 'image'", got=type(value).__name__, needed="a path")


class Images:
    """Makes batches: pixels are read and processed when a batch needs them.

    Args:
        processor: of the model.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: list[tuple[ImageFile, int]]) -> dict[str, Tensor]:
        from PIL import Image

        pixels = [Image.fromarray(image.pixels()) for image, _ in rows]
        made = self.processor(images=pixels, return_tensors="pt")["pixel_values"]
        return {"pixel_values": made, "labels": torch.tensor([label for _, label in rows])}


def _trainer(settings: VisionSettings, given: TrainerInputs, new: Sequence[str]) -> RunTrainer:
    data: Split[Labelled]
    data, config = given.data
    names = list(config.id2label.values())

    def rows(examples: Sequence[Labelled]) -> list[tuple[ImageFile, int]]:
        return [(example.inputs, encoded(example, "single", names)) for example in examples]

    train, domains = rows(data.train), {name: rows(found) for name, found in data.domains.items()}
    given.notes.append(f"{len(names)} classes: {listed(names)}. Images: {rows_counted(data)}.")
    return head_trainer(settings, given, train, domains, Images(given.tokenizer), new)


def _scores(trainer: RunTrainer, model: Any, rows: Sequence[Any]) -> Mapping[str, float]:
    logits, labels = [], []
    for inputs, outputs in outputs_of(model, rows, trainer.data_collator, 4 * trainer.args.train_batch_size):
        logits.append(outputs.logits.float().cpu())
        labels.append(inputs["labels"].cpu())
    return class_scores(torch.cat(logits), torch.cat(labels))
