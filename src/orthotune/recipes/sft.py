"""Supervised finetuning of a language model by OFT, COFT, LoRA or in full, measured on a target and a source domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orthotune.errors import DataError, RecipeError
from orthotune.metrics.answers import answer_questions
from orthotune.metrics.drift import text_drift
from orthotune.metrics.questions import read_questions
from orthotune.metrics.text_loss import TokenRow
from orthotune.recipes import rewind
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.sft_data import examples_for, keep_notes, kept_examples, source_domain_notes
from orthotune.recipes.text_job import TextJob, TrainerInputs, model_note, source_of, trainer_arguments
from orthotune.recipes.text_plan import plan_text
from orthotune.recipes.text_run import Callbacks, Say, run_text
from orthotune.runs import processes
from orthotune.runs.directory import RunDirectory
from orthotune.runs.record import RunRecord
from orthotune.text import sft_trainer
from orthotune.text.added_losses import LossMaker
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.counted_rows import TRAIN, counted, refuse_lost
from orthotune.text.data import Examples
from orthotune.text.keep_outputs import KeepOutputs
from orthotune.text.shown_rows import SHOWN, Marks, ShownExample, shown_lines
from orthotune.text.step_log import Measure, domain_losses
from orthotune.text.trainer import RunTrainer
from orthotune.text.written_texts import texts_of_run

Adapt = Callable[[Any, list[str]], Any]
#: The examples to learn from, and those to measure on and to keep outputs on, by domain.
Data = tuple[Examples, dict[str, Examples]]


def run(
    settings: SFTSettings,
    say: Say = print,
    callbacks: Callbacks = (),
    bar: bool = True,
    adapt: Adapt | None = None,
) -> RunRecord:
    """Finetune as ``settings`` say and return the record that is also in ``run.json`` of the output.

    The output is as :func:`orthotune.recipes.text_run.run_text` says.

    Args:
        settings: of the run.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.
        adapt: puts on what is trained instead of the adapter of the settings, given the model and the notes.

    Raises:
        OrthotuneError: as for every run of a language model.

    Example:
        >>> run(SFTSettings(steps=20, output="runs/first")).gain > 0  # doctest: +SKIP
        True
    """
    record = run_text(settings, job(settings, adapt), say, callbacks, bar)
    return rewind.finish(settings, say) if settings.rewind != "none" and record.rewound is None else record


def job(settings: SFTSettings, adapt: Adapt | None = None) -> TextJob:
    """What this recipe adds to the shared run: losses of two domains, and outputs that are kept on texts of one."""
    source = source_of(settings)
    return TextJob(
        data=lambda: _data(settings),
        tokenizer=lambda: load_tokenizer(source),
        model=lambda dtype: load_model(source, dtype, settings.quantization),
        trainer=lambda given: _trainer(settings, given),
        notes=source_domain_notes(settings) + keep_notes(settings),
        adapt=adapt,
        losses=lambda directory, checkpoint: _losses(settings, directory, checkpoint),
        measures=lambda trainer: [domain_losses(sft_trainer.domain_rows(trainer, settings.eval_tokens))],
        ends=lambda trainer: [_answers(trainer)] if settings.answers else [],
        entries=["keep_nats"],
        findings=lambda trainer, base: _data_counts(trainer) | _drift(trainer, base, settings.eval_tokens),
    )


def plan(settings: SFTSettings) -> list[str]:
    """A description of the run with its memory; nothing is loaded, trained or written.

    Args:
        settings: of the run.

    Raises:
        RecipeError: as the run itself would.

    Example:
        >>> [line for line in plan(SFTSettings()) if line.startswith("memory")]  # doctest: +SKIP
        ['memory      48.9 MiB (estimate), plus temporary buffers of single operations']
    """
    return plan_text(settings, job(settings), kept=(settings.keep_batch or 1) if settings.keep else 0)


def show_data(settings: SFTSettings, marks: Marks) -> list[str]:
    """Three training examples as tokens with the learned ones marked, and the counts, without loading the model.

    Args:
        settings: of the run.
        marks: around learned tokens.

    Returns:
        Lines to print.

    Raises:
        OrthotuneError: the data or the tokenizer cannot be read, or the data cannot be written by its chat template.

    Example:
        >>> from orthotune.text.shown_rows import BRACKETS
        >>> show_data(SFTSettings(), BRACKETS)[-1]
        'data: 251 examples, 201,397 tokens, 201,397 of them learned. Columns that are not used: source.'
    """
    examples, _ = _data(settings)
    tokenizer = load_tokenizer(source_of(settings))
    packed = sft_trainer.packing_of(settings.packing, examples.format) != "none"
    limit = None if packed else settings.max_length
    found = sft_trainer.training_rows(tokenizer, examples, limit, settings.loss_on == "answers")
    counts = replace(counted(found.table(), settings.max_length, packed), blank=examples.blank, split=found.split)
    facts = [model_note(settings), *examples.notes, counts.sentences(settings.max_length, examples.unused)]
    try:
        refuse_lost(counts, examples.source, settings.max_dropped, settings.max_length)
    except DataError as fault:
        facts.append(f"A run is refused: {fault}")
    shown: dict[tuple[str, ...], ShownExample] = {}
    for number, row in zip(found.examples, found.rows, strict=True):  # a mixture may repeat rows
        place = examples.place(number)
        shown.setdefault((place, str(row.input_ids)), ShownExample(place, {"": row}))
        if len(shown) == SHOWN:
            break
    return shown_lines(tokenizer, list(shown.values()), facts, marks, limit)


def _data(settings: SFTSettings) -> Data:
    examples, domains = examples_for(settings)
    kept = kept_examples(settings)
    return examples, domains | ({sft_trainer.KEPT: kept} if kept else {})


def _trainer(settings: SFTSettings, given: TrainerInputs) -> RunTrainer:
    examples, domains = given.data
    arguments = _arguments(settings, given.checkpoints, examples.format, given.dtype)
    trainer = sft_trainer.build_trainer(
        given.model, given.tokenizer, arguments, examples, domains, given.adapter, given.parts,
        answers_only=settings.loss_on == "answers",
    )  # fmt: skip
    counts = trainer.row_counts[TRAIN]
    given.notes.extend(examples.notes)
    refuse_lost(counts, examples.source, settings.max_dropped, settings.max_length)
    if settings.packing == "wrapped" and examples.format != "text":
        given.notes.append(
            "packing=wrapped: examples read those before them in a row; packing=bfd_split keeps them apart."
        )
    given.notes.append(counts.sentences(settings.max_length, examples.unused))
    given.notes.extend(
        f"{name}: {found.dropped:,} of {found.examples:,} examples are not measured: nothing to predict in max_length."
        for name, found in trainer.row_counts.items()
        if found.dropped and name != TRAIN
    )
    if sft_trainer.KEPT in domains:
        sft_trainer.kept_rows(trainer)  # texts that cannot be used are refused before the run takes its directory
    _check_held_out(settings, sft_trainer.domain_rows(trainer, rewind.TOKENS))
    return trainer


def _check_held_out(settings: SFTSettings, rows: Mapping[str, Sequence[TokenRow]]) -> None:
    """Refuse what needs held-out texts that there are not, before the run takes its directory."""
    if settings.rewind != "none":
        named = {"new": "eval_data"} if settings.old_data is None else {"new": "eval_data", "old": "old_data"}
        rewind.require_rows(rows, named)
    asked = [f"stop_when.{rule}" for rule in ("gain", "patience") if rule in settings.stop_when]
    asked += ["result=best"] if settings.result == "best" else []
    if asked and "new" not in rows:
        got = "no held-out texts of the target domain, and too few rows in data to hold some out"
        raise RecipeError(", ".join(asked), got=got, do="Name some: eval_data=FILE")


def _losses(settings: SFTSettings, directory: RunDirectory, checkpoint: Path | None) -> Sequence[LossMaker]:
    if not settings.keep:
        return ()

    def keep(trainer: Any) -> KeepOutputs:
        if sft_trainer.KEPT in (trainer.eval_dataset or {}):
            rows = sft_trainer.kept_rows(trainer)
        else:
            rows = processes.from_main(lambda: texts_of_run(directory, checkpoint, trainer))
        return KeepOutputs(settings.keep, rows, settings.keep_batch or 1, settings.seed)

    return (keep,)


def _answers(trainer: RunTrainer) -> Measure:
    questions = read_questions()
    return lambda model: answer_questions(model, trainer.processing_class, questions).scores()


def _data_counts(trainer: RunTrainer) -> dict[str, Any]:
    return {"data": {name: counts.record() for name, counts in trainer.row_counts.items()}}


def _drift(trainer: RunTrainer, base: Any, tokens: int | None) -> dict[str, Any]:
    rows = sft_trainer.domain_rows(trainer, tokens)
    return {"drift": text_drift(trainer.model, rows["old"], base).kl} if "old" in rows else {}


def _arguments(settings: SFTSettings, checkpoints: Path, data_format: str, dtype: torch.dtype) -> Any:
    make = partial(sft_trainer.sft_config, packing=settings.packing, data_format=data_format)
    return trainer_arguments(make, settings, checkpoints, dtype, max_length=settings.max_length)
