"""Recognition of speech by models as Whisper: recordings with transcripts, measured by the words that are wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, Seq2SeqTrainer, Seq2SeqTrainingArguments

from orthotune.errors import DataError, RecipeError
from orthotune.files.installed_worlds import names_built_in
from orthotune.metrics.word_errors import word_error_rate
from orthotune.recipes.head_job import head_trainer, scores_of
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
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.runs.curve import draw_scores
from orthotune.runs.metrics_log import Score
from orthotune.runs.record import RunRecord
from orthotune.runs.recordings import Recording, read_recording
from orthotune.text.causal_model import no_model
from orthotune.text.headed_model import load_headed, outputs_of, read_config, save_with_config
from orthotune.text.trainer import RunTrainer
from orthotune.text.word_pieces import UNTAGGED
from orthotune.worlds.tiny_models import tiny_model
from orthotune.worlds.tone_words import RATE, TONES, tone_words

WER = Score("word_error_rate", higher_is_better=False)


class SpeechSettings(HeadSettings):
    """The settings of a run on recordings with transcripts.

    Without a model, a tiny Whisper without pretraining learns words that are tones.

    Example:
        >>> SpeechSettings(method="lora").data
        'tone-words'
    """

    recipe: ClassVar[str] = "speech"
    world: ClassVar[str] = TONES

    model: str = Field(description="Path or hub name of a model as Whisper, or tiny-whisper.")
    data: str = Field(
        description="File (.csv, .jsonl, .json, .parquet), directory, hub name or tone-words, with the columns audio "
        "(a path, or samples and sampling_rate) and text."
    )
    language: str | None = Field(None, description="Of the recordings, for a model of several languages: french, fr.")
    max_length: int = Field(448, ge=4, description="Tokens per transcript; what is longer is cut.")


@dataclass(frozen=True)
class Spoken:
    """A recording with its transcript and its place."""

    place: str
    recording: Recording
    text: str


def run(
    settings: SpeechSettings,
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
        DataError: recordings or transcripts that cannot be used; names the row.
        OrthotuneError: as for every run.

    Example:
        >>> run(SpeechSettings(steps=150, output="runs/first")).scores_after["word_error_rate"]  # doctest: +SKIP
        0.1
    """
    return run_text(settings, job(settings, adapt), say, callbacks, bar)


def job(settings: SpeechSettings, adapt: Callable[[Any, list[str]], Any] | None = None) -> TextJob:
    """What this recipe adds to the shared run: recordings, transcripts, and the word error rate.

    Args:
        settings: of the run.
        adapt: as of :func:`run`.
    """
    source, new = str(tiny_model(settings.model) or source_of(settings)), list[str]()
    data = split(settings, _read)
    if not data.train:
        raise DataError(f"data {settings.data!r}", got="no rows to learn from", do="Pass a smaller held_out")

    def model(dtype: torch.dtype) -> Any:
        kind, config = AutoModelForSpeechSeq2Seq, read_config(source)
        made, new[:] = load_headed(kind, source, dtype, config, settings.seed, settings.quantization)
        return made

    return TextJob(
        data=lambda: data,
        tokenizer=lambda: _processor(source, settings),
        model=model,
        trainer=lambda given: _trainer(settings, given, new),
        notes=forgetting_notes(settings),
        adapt=adapt,
        measures=lambda trainer: [scores_of(trainer.eval_dataset, partial(_scores, settings, trainer))],
        task=None,  # PEFT's models of sequences take tokens
        curve=partial(draw_scores, names=[WER.name], heading="Held-out recordings"),
        score=WER,
        save=save_with_config,
    )


def _processor(source: str, settings: SpeechSettings) -> Any:
    try:
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise no_model(source, fault) from fault
    if not all(hasattr(processor, part) for part in ("feature_extractor", "tokenizer")):
        needed = "a processor of recordings and texts, as Whisper's"
        raise RecipeError(f"model={settings.model}", got=type(processor).__name__, needed=needed)
    if settings.language is not None:
        if not hasattr(processor.tokenizer, "set_prefix_tokens") or not _languages(source):
            raise RecipeError(
                f"language={settings.language}", got="a model of one language", do="Leave language out"
            )  # fmt: skip
        try:
            processor.tokenizer.set_prefix_tokens(language=settings.language, task="transcribe")
        except ValueError as fault:
            raise RecipeError(f"language={settings.language}", got=str(fault).splitlines()[0]) from fault
    return processor


def _languages(source: str) -> bool:
    """Whether a model's tokens of languages are known, which decide what it writes."""
    from transformers import GenerationConfig

    try:
        return bool(getattr(GenerationConfig.from_pretrained(source), "lang_to_id", None))
    except OSError:
        return False


def _read(source: str) -> list[Spoken]:
    if names_built_in(source, [TONES]):
        return [Spoken(place, Recording(samples, RATE), text) for place, samples, text in tone_words(source)]
    rows = load_rows(source)
    require_columns(rows, ["audio", "text"], source)
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    return [
        Spoken(
            place, read_recording(row["audio"], place, folder, row.get("sampling_rate")), text_in(place, row, "text")
        )
        for place, row in rows
    ]


class Recordings:
    """Makes batches of recordings and transcripts, the features when a batch needs them.

    Args:
        processor: of the model.
        start: the token that the model itself puts before a transcript.
    """

    def __init__(self, processor: Any, start: int | None) -> None:
        self.processor, self.start = processor, start

    def __call__(self, rows: list[tuple[Tensor, list[int]]]) -> dict[str, Tensor]:
        extractor = self.processor.feature_extractor
        # Whisper takes windows of one length; others take the longest recording of the batch.
        padding: Any = "max_length" if hasattr(extractor, "nb_max_frames") else True
        samples = [row[0].numpy() for row in rows]
        made = extractor(samples, sampling_rate=extractor.sampling_rate, padding=padding, return_tensors="pt")
        labels = [ids[1:] if ids and ids[0] == self.start else ids for _, ids in rows]
        longest = max(map(len, labels))
        filled = [ids + [UNTAGGED] * (longest - len(ids)) for ids in labels]
        return {**made, "labels": torch.tensor(filled)}


def _trainer(settings: SpeechSettings, given: TrainerInputs, new: Sequence[str]) -> RunTrainer:
    data: Split[Spoken] = given.data
    processor, config = given.tokenizer, given.model.config
    rate = processor.feature_extractor.sampling_rate
    most = min(settings.max_length, getattr(config, "max_target_positions", None) or settings.max_length)
    window = getattr(processor.feature_extractor, "chunk_length", None)
    cut = {"transcripts": 0, "recordings": 0}

    def rows(examples: Sequence[Spoken]) -> list[tuple[Tensor, list[int]]]:
        made = []
        for example in examples:
            if example.recording.rate != rate:
                raise DataError(
                    f"{example.place}: column 'audio'", got=f"{example.recording.rate} samples a second",
                    needed=f"{rate}, as the model takes", do=f"Resample the recordings: ffmpeg -i IN -ar {rate} OUT",
                )  # fmt: skip
            ids = processor.tokenizer(example.text).input_ids
            cut["transcripts"] += len(ids) > most
            cut["recordings"] += window is not None and example.recording.seconds > window
            made.append((example.recording.samples, ids if len(ids) <= most else [*ids[: most - 1], ids[-1]]))
        return made

    train, domains = rows(data.train), {name: rows(found) for name, found in data.domains.items()}
    seconds = sum(example.recording.seconds for example in data.train)
    given.notes.append(f"Recordings: {rows_counted(data)}; {seconds / 60:.1f} minutes to learn from.")
    if cut["transcripts"]:
        given.notes.append(f"{cut['transcripts']:,} transcripts are longer than {most} tokens and were cut.")
    if cut["recordings"]:
        given.notes.append(f"{cut['recordings']:,} recordings are longer than {window} seconds and are cut.")
    collate = Recordings(processor, config.decoder_start_token_id)
    return head_trainer(settings, given, train, domains, collate, new, (Seq2SeqTrainer, Seq2SeqTrainingArguments))


def _scores(settings: SpeechSettings, trainer: RunTrainer, model: Any, rows: Sequence[Any]) -> Mapping[str, float]:
    tokenizer = trainer.processing_class.tokenizer
    config = model.config
    most = min(settings.max_length, (getattr(config, "max_target_positions", None) or settings.max_length) - 8)
    options = {} if settings.language is None else {"language": settings.language, "task": "transcribe"}
    wanted, found, losses, tokens = list[str](), list[str](), 0.0, 0
    for inputs, outputs in outputs_of(model, rows, trainer.data_collator, 4 * trainer.args.train_batch_size):
        labels = inputs.pop("labels")
        count = int((labels != UNTAGGED).sum())
        losses, tokens = losses + outputs.loss.item() * count, tokens + count
        with _quiet_generation():
            written = model.generate(**inputs, max_new_tokens=most, **options)
        found += tokenizer.batch_decode(written, skip_special_tokens=True)
        wanted += tokenizer.batch_decode(
            labels.where(labels != UNTAGGED, tokenizer.pad_token_id), skip_special_tokens=True
        )
    return {
        WER.name: word_error_rate([text.strip() for text in wanted], [text.strip() for text in found]),
        "loss": losses / tokens,
    }


@contextmanager
def _quiet_generation() -> Iterator[None]:
    """transformers remarks on each call about lengths and masks that Whisper sets itself."""
    loggers = [
        logging.getLogger(f"transformers.{name}") for name in ("generation.utils", "generation.configuration_utils")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
