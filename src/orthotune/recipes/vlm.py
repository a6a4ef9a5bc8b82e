"""Answers about images: finetuning of a vision-language model by TRL, on the last answer of each dialogue."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from transformers import AutoModelForImageTextToText, AutoProcessor

from orthotune.errors import DataError, RecipeError
from orthotune.image.data.image_folder import ImageFile, open_images
from orthotune.recipes.head_settings import HeadSettings
from orthotune.recipes.labelled_data import (
    Split,
    forgetting_notes,
    load_rows,
    require_columns,
    rows_counted,
    split,
    text_in,
)
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of, trainer_arguments
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.recipes.vision import origin_of
from orthotune.runs.data_files import Row
from orthotune.runs.record import RunRecord
from orthotune.text.arguments import run_arguments
from orthotune.text.causal_model import no_model
from orthotune.text.data import is_dialogue
from orthotune.text.headed_model import load_headed, outputs_of, read_config
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer
from orthotune.text.word_pieces import UNTAGGED
from orthotune.worlds.image_classes import COLOURED, coloured_digits
from orthotune.worlds.tiny_models import tiny_model

#: The question about the images of the built-in world.
QUESTION = "What colour is the digit?"


class VLMSettings(HeadSettings):
    """The settings of a run on questions about images.

    Without a model, a tiny Llava without pretraining learns to name the colours of digits.

    Example:
        >>> VLMSettings(method="lora").data
        'image-world/colours'
    """

    recipe: ClassVar[str] = "vlm"
    world: ClassVar[str] = "image-world"
    absent: ClassVar[tuple[str, ...]] = ("eval_tokens", "max_length")

    model: str = Field(description="Path or hub name of a vision-language model, or tiny-llava.")
    data: str = Field(
        description="File (.csv, .jsonl, .json, .parquet), directory, hub name or image-world/colours, with the "
        "columns image (a path) or images (a list), and prompt and completion, or messages."
    )


@dataclass(frozen=True)
class Asked:
    """A dialogue up to its last answer, that answer, and the images that it is about."""

    prompt: list[Row]
    completion: list[Row]
    images: list[ImageFile]

    def row(self) -> dict[str, Any]:
        """The row that TRL's trainer takes, with images of Pillow."""
        from PIL import Image

        pictured = [Image.fromarray(image.pixels()) for image in self.images]
        return {**copy.deepcopy({"prompt": self.prompt, "completion": self.completion}), "images": pictured}


def run(
    settings: VLMSettings,
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
        DataError: images or dialogues that cannot be used; names the row.
        OrthotuneError: as for every run of a language model.

    Example:
        >>> run(VLMSettings(steps=20, output="runs/first")).gain > 0  # doctest: +SKIP
        True
    """
    return run_text(settings, job(settings, adapt), say, callbacks, bar)


def job(settings: VLMSettings, adapt: Callable[[Any, list[str]], Any] | None = None) -> TextJob:
    """What this recipe adds to the shared run: images with questions and answers, and the losses of the answers.

    Args:
        settings: of the run.
        adapt: as of :func:`run`.
    """
    source = str(tiny_model(settings.model) or source_of(settings))
    data = split(settings, _read)
    if not data.train:
        raise DataError(f"data {settings.data!r}", got="no rows to learn from", do="Pass a smaller held_out")

    def model(dtype: torch.dtype) -> Any:
        kind, config = AutoModelForImageTextToText, read_config(source)
        made, new = load_headed(kind, source, dtype, config, settings.seed, settings.quantization)
        if new:
            got = f"no weights for {', '.join(new[:3])}"
            raise RecipeError(f"model={settings.model}", got=got, needed="a complete vision-language model")
        return made

    return TextJob(
        data=lambda: data,
        tokenizer=lambda: _processor(source, settings.model),
        model=model,
        trainer=lambda given: _trainer(settings, given),
        notes=[
            f"vlm: the last answer of each dialogue is learned. Rows: {rows_counted(data)}.",
            *forgetting_notes(settings),
        ],
        adapt=adapt,
        measures=lambda trainer: [_losses(trainer, data.domains)],
    )


def _processor(source: str, named: str) -> Any:
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise no_model(source, fault) from fault
    if not all(hasattr(processor, part) for part in ("image_processor", "tokenizer")):
        needed = "a processor of images and texts, as Llava's"
        raise RecipeError(f"model={named}", got=type(processor).__name__, needed=needed)
    if not (processor.chat_template or processor.tokenizer.chat_template):
        raise RecipeError(f"model={named}", got="a processor without a chat template", needed="one, for the dialogues")
    return processor


def _read(source: str) -> list[Asked]:
    if source == COLOURED or source.startswith(f"{COLOURED}/"):
        return [Asked(*_exchange(QUESTION, name), [image]) for image, name in coloured_digits(source)]
    rows = [(place, _as_list_of_images(row)) for place, row in load_rows(source)]
    require_columns(rows, ["images"], source)
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    found = []
    for place, row in rows:
        values = row["images"]
        if not isinstance(values, list) or not values:
            raise DataError(f"{place}: column 'images'", got=repr(values)[:40], needed="a list of paths")
        opened = open_images([(place, origin_of(place, value, folder)) for value in values], f"of {place}", "refuse")
        images = [image for image in opened if image is not None]
        prompt, completion = _dialogue(place, row, source)
        _check_marks(place, prompt, len(images))
        found.append(Asked(prompt, completion, images))
    return found


def _as_list_of_images(row: Row) -> Row:
    """One image in the column ``image`` is a list of one."""
    return {**row, "images": [row["image"]]} if row.get("images") is None and row.get("image") is not None else row


def _exchange(prompt: str, completion: str) -> tuple[list[Row], list[Row]]:
    return [{"role": "user", "content": prompt}], [{"role": "assistant", "content": completion}]


def _dialogue(place: str, row: Row, source: str) -> tuple[list[Row], list[Row]]:
    if row.get("messages") is None:
        require_columns([(place, row)], ["prompt", "completion"], source)
        return _exchange(text_in(place, row, "prompt"), text_in(place, row, "completion"))
    messages = row["messages"]
    if not is_dialogue(messages) or len(messages) < 2:
        needed = "a list of {role, content}, a question and an answer at least"
        raise DataError(f"{place}: column 'messages'", got=repr(messages)[:40], needed=needed)
    if messages[-1]["role"] != "assistant":
        got = f"a last message of the role {messages[-1]['role']!r}"
        raise DataError(f"{place}: column 'messages'", got=got, needed="an answer of the assistant at the end")
    return messages[:-1], messages[-1:]


def _check_marks(place: str, prompt: Sequence[Row], images: int) -> None:
    """Where messages say at which place their images are, all images must have one."""
    parts = [part for message in prompt if isinstance(message["content"], list) for part in message["content"]]
    marks = sum(isinstance(part, dict) and part.get("type") == "image" for part in parts)
    if parts and marks != images:
        raise DataError(place, got=f"{images} images and {marks} places for them in the messages", needed="as many")


def _trainer(settings: VLMSettings, given: TrainerInputs) -> RunTrainer:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    data: Split[Asked] = given.data
    # A limit would cut the tokens of images, which the model counts.
    arguments = trainer_arguments(
        partial(run_arguments, SFTConfig), settings, given.checkpoints, given.dtype, max_length=None
    )
    made: RunTrainer = run_trainer(SFTTrainer)(
        given.model,
        args=arguments,
        train_dataset=Dataset.from_list([one.row() for one in data.train]),
        processing_class=given.tokenizer,
        peft_config=given.adapter,
        parts=given.parts,
    )
    return made


def _losses(trainer: RunTrainer, domains: dict[str, list[Asked]]) -> Measure:
    """The loss of the answers in nats per token, for each domain."""

    def collate(rows: list[Asked]) -> dict[str, Any]:
        return dict(trainer.data_collator([one.row() for one in rows]))

    def measure(model: Any) -> dict[str, float]:
        found = {}
        for domain, rows in domains.items():
            losses, tokens = 0.0, 0
            for inputs, outputs in outputs_of(model, rows, collate, trainer.args.train_batch_size):
                count = int((inputs["labels"][:, 1:] != UNTAGGED).sum())
                losses, tokens = losses + outputs.loss.item() * count, tokens + count
            found[f"{domain}_nats"] = losses / max(1, tokens)
        return found

    return measure
