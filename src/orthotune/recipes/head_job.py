"""What recipes for models with a head share: the trainer of their rows, and scores that are measured on each domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from transformers import Trainer, TrainingArguments

from orthotune.recipes.head_settings import HeadSettings
from orthotune.recipes.text_job import TrainerInputs, trainer_arguments
from orthotune.runs.metrics_log import OLD
from orthotune.text.arguments import run_arguments
from orthotune.text.headed_model import adapted
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer

#: model and rows -> scores by name
Scores = Callable[[Any, Sequence[Any]], Mapping[str, float]]


def head_trainer(
    settings: HeadSettings,
    given: TrainerInputs,
    train: list[Any],
    domains: dict[str, list[Any]],
    collate: Callable[[list[Any]], dict[str, Any]],
    new_modules: Sequence[str],
    kind: tuple[Any, Any] = (Trainer, TrainingArguments),
) -> RunTrainer:
    """A trainer of transformers for rows of tensors or lists, with the head trained in full beside the adapter.

    Args:
        settings: of the run.
        given: what the run gives.
        train: rows to learn from.
        domains: rows to measure on, by domain.
        collate: makes a batch of rows.
        new_modules: what of the model its base has no weights for.
        kind: the class of the trainer, and that of its arguments.
    """
    trainer, arguments = kind
    made: RunTrainer = run_trainer(trainer)(
        adapted(given.model, given.adapter, new_modules),
        args=trainer_arguments(
            partial(run_arguments, arguments), settings, given.checkpoints, given.dtype, remove_unused_columns=False
        ),
        train_dataset=train,
        eval_dataset=domains or None,
        data_collator=collate,
        processing_class=given.tokenizer,
        parts=given.parts,
    )
    return made


def scores_of(domains: Mapping[str, Sequence[Any]] | None, scores: Scores) -> Measure:
    """The measure of a run: the scores on held-out rows, and with ``old_`` before their names those on older data.

    Args:
        domains: rows to measure on, by domain.
        scores: of a model on rows.
    """

    def measure(model: Any) -> dict[str, float]:
        return {
            f"{'' if domain == 'new' else OLD}{name}": value
            for domain, rows in (domains or {}).items()
            for name, value in scores(model, rows).items()
        }

    return measure
