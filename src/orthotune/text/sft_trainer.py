"""Supervised finetuning on TRL: the trainer, and the rows that it tokenized to measure on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftConfig
from trl import SFTConfig, SFTTrainer

from orthotune.errors import DataError
from orthotune.metrics.text_loss import TokenRow, token_rows
from orthotune.text.arguments import run_arguments
from orthotune.text.counted_rows import KEPT, TRAIN, CountingSFTTrainer
from orthotune.text.data import Examples
from orthotune.text.keep_outputs import counted
from orthotune.text.labelled_rows import LabelledRows, Labelling, check_template, labelled_rows
from orthotune.text.packed_rows import check_separated
from orthotune.text.trainer import RunTrainer, TrainerParts, run_trainer


def sft_config(checkpoints: Path, *, packing: str, data_format: str, **options: Any) -> SFTConfig:
    """The trainer's arguments, as :func:`~orthotune.text.arguments.run_arguments` makes them, and how rows are packed.

    Args:
        checkpoints: the folder of the run's checkpoints.
        packing: ``none`` or a strategy of TRL. ``auto`` wraps running text, so that none of it is cut off, and leaves
            other examples one per row.
        data_format: of the examples.
        **options: further fields.
    """
    packing = packing_of(packing, data_format)
    rows: dict[str, Any] = {
        "packing": packing != "none",
        "packing_strategy": packing if packing != "none" else "bfd_split",
    }
    return run_arguments(SFTConfig, checkpoints, eval_packing=False, **rows, **options)


def packing_of(packing: str, data_format: str) -> str:
    """How rows are packed: ``auto`` wraps running text, and leaves other examples one per row.

    Args:
        packing: the setting.
        data_format: of the examples.

    Example:
        >>> packing_of("auto", "text"), packing_of("auto", "messages")
        ('wrapped', 'none')
    """
    if packing != "auto":
        return packing
    return "wrapped" if data_format == "text" else "none"


def build_trainer(
    model: Any,
    tokenizer: Any,
    arguments: SFTConfig,
    examples: Examples,
    domains: dict[str, Examples],
    adapter: PeftConfig | None,
    parts: TrainerParts | None = None,
    answers_only: bool = False,
) -> RunTrainer:
    """A trainer for ``examples`` whose ``eval_dataset`` holds the tokenized rows of each domain.

    Args:
        model: to train, or to put ``adapter`` on.
        tokenizer: of the model.
        arguments: of the trainer.
        examples: to learn from.
        domains: to measure on, by name. The domain ``KEPT`` is not measured: see :func:`kept_rows`.
        adapter: config of what is trained; None trains what of the model is not frozen.
        parts: what a run adds to the trainer.
        answers_only: of dialogues, learn and measure the messages of the assistant alone.

    Raises:
        DataError: dialogues for a tokenizer without a chat template, or no example left after tokenizing.
        RecipeError: packed rows, which the model does not keep apart.
    """
    for given in (examples, *domains.values()):
        check_template(tokenizer, given)
    limit = None if arguments.packing else arguments.max_length
    learned = training_rows(tokenizer, examples, limit, answers_only)
    labelling = Labelling(answers_only, examples.format in ("prompt-completion", "mixed"))
    measured = {
        name: evaluation_rows(
            tokenizer,
            given,
            arguments.max_length,
            labelling if name != KEPT else replace(labelling, answers_only=False),
        ).table()
        for name, given in domains.items()
    }
    trainer: RunTrainer = run_trainer(CountingSFTTrainer)(
        model,
        args=arguments,
        train_dataset=learned.table(),
        eval_dataset=measured or None,
        processing_class=tokenizer,
        peft_config=adapter,
        parts=parts,
    )
    trainer.row_counts[TRAIN] = replace(trainer.row_counts[TRAIN], blank=examples.blank, split=learned.split)
    if not len(trainer.train_dataset):
        raise DataError(
            f"data {examples.source!r}",
            got=f"no example with anything to learn in its first {arguments.max_length} tokens",
            do="Pass a larger max_length",
        )
    check_separated(trainer)
    return trainer


def domain_rows(trainer: SFTTrainer, tokens: int | None = None) -> dict[str, list[TokenRow]]:
    """The rows of each measured domain as the trainer tokenized them.

    Args:
        trainer: whose ``eval_dataset`` holds the rows.
        tokens: at most about as many tokens of each domain, in rows chosen at random and always the same ones;
            None takes all rows.
    """
    return {
        name: some_rows(_token_rows(rows), tokens)
        for name, rows in (trainer.eval_dataset or {}).items()
        if name != KEPT and len(rows)
    }


def some_rows(rows: list[TokenRow], tokens: int | None) -> list[TokenRow]:
    """Rows that hold about ``tokens`` tokens, chosen at random and always the same ones.

    Args:
        rows: all of them.
        tokens: how many to choose; None chooses all rows. The row that reaches the number is the last one.

    Example:
        >>> len(some_rows([TokenRow([1, 2, 3], [1, 2, 3])] * 10, 7))
        3
    """
    if tokens is None:
        return rows
    chosen: list[int] = []
    left = tokens
    for index in random.Random(len(rows)).sample(range(len(rows)), len(rows)):
        if left <= 0:
            break
        chosen.append(index)
        left -= len(rows[index].input_ids)
    return [rows[index] for index in sorted(chosen)]


def kept_rows(trainer: SFTTrainer) -> list[TokenRow]:
    """The rows of the domain ``KEPT`` in which any token is counted.

    Raises:
        DataError: there are none.
    """
    rows = [row for row in _token_rows(trainer.eval_dataset[KEPT]) if counted([row])]
    if not rows:
        got = f"no example with anything to predict in its first {trainer.args.max_length} tokens"
        raise DataError("keep_data", got=got, do="Pass a larger max_length, or name other texts")
    return rows


def training_rows(tokenizer: Any, examples: Examples, limit: int | None, answers_only: bool) -> LabelledRows:
    """What a trainer learns from, in full length.

    Args:
        tokenizer: of the model.
        examples: of any form.
        limit: tokens that will be left of a row; None for all, as where rows are packed.
        answers_only: of dialogues, the messages of the assistant alone.

    Raises:
        DataError: a dialogue that the chat template refuses.
    """
    # Where all is running text, packing decides whether texts are wrapped or cut off.
    labelling = Labelling(answers_only, max_length=limit, texts_in_pieces=examples.format == "mixed")
    return labelled_rows(tokenizer, examples, labelling)


def evaluation_rows(tokenizer: Any, examples: Examples, max_length: int | None, labelling: Labelling) -> LabelledRows:
    """What is measured. Running text is cut into rows here, since the trainer would keep only the head of each text.

    Args:
        tokenizer: of the model.
        examples: of any form.
        max_length: tokens of a row of running text.
        labelling: which tokens of other rows are measured.

    Raises:
        DataError: a dialogue that the chat template refuses.
    """
    if examples.format == "mixed":
        labelling = replace(labelling, max_length=max_length, texts_in_pieces=True)
    if examples.format != "text":
        return labelled_rows(tokenizer, examples, labelling)
    rows = token_rows(tokenizer, (row["text"] for row in examples.rows), max_length or 1024)
    return LabelledRows(rows, list(range(len(rows))))


def _token_rows(rows: Dataset) -> list[TokenRow]:
    return [TokenRow(row["input_ids"], row["labels"]) for row in rows]
