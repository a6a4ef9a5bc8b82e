"""Packed rows: whether a model keeps the examples in one row apart, or lets each read the ones before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from orthotune.errors import RecipeError
from orthotune.runs.sharded_model import is_sharded

#: Tokens of each of the two examples in the row that is tried.
TRIED = 8
#: Largest change of a logit, relative to the largest logit, that rounding explains: models with experts multiply
#: matrices of other sizes when other tokens stand before. An example that is read changes logits 30 times as much.
ROUNDING = 1e-4
#: Share of the change in an unpacked row, in which the second example does read the first one, that rounding in half
#: precision may reach.
READ = 0.2


def check_separated(trainer: Any) -> None:
    """Refuse to pack rows for a model that does not keep them apart.

    The model computes two rows of two examples, which differ in the first example alone. The attention of most models
    is masked by the positions, which begin again at 0; models that have no such mask, or a state instead of attention,
    give the second example other logits.

    Args:
        trainer: of TRL, with its collator and its tokenized rows; one that pads its rows is not tried, nor is a model
            that is spread over processes.

    Raises:
        RecipeError: the second example depends on the first one, or the model does not take packed rows.
    """
    if not getattr(trainer, "padding_free", False) or is_sharded(trainer.model):
        return
    ids = list(dict.fromkeys(trainer.train_dataset[0]["input_ids"]))[: 2 * TRIED]
    half = len(ids) // 2
    if not half:
        return  # one token, which can be mistaken for no other
    second = ids[:half]
    try:
        firsts = ids[:half], ids[half : 2 * half]
        one, other = (_logits(trainer, [first, second])[-half:] for first in firsts)
        change, largest = (one - other).abs().max().item(), one.abs().max().item()
        if change <= ROUNDING * largest:
            return
        one, other = (_logits(trainer, [[*first, *second]])[-half:] for first in firsts)
    except TypeError as fault:
        raise _refused(trainer, f"a model that does not take packed rows: {fault}") from fault
    if change > READ * (one - other).abs().max().item():
        raise _refused(
            trainer,
            "a model whose examples in one row read each other: other tokens before an example change its logits",
        )


def _logits(trainer: Any, examples: Sequence[list[int]]) -> torch.Tensor:
    """The logits of one packed row, as the trainer gives rows to the model; ``(tokens, vocabulary)``."""
    ids = [token for example in examples for token in example]
    row = {"input_ids": ids, "labels": ids, "seq_lengths": [len(example) for example in examples]}
    batch = trainer._prepare_inputs(trainer.data_collator([row]))
    batch.pop("labels")
    training = trainer.model.training
    trainer.model.eval()
    try:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            logits: torch.Tensor = trainer.model(**batch, use_cache=False).logits[0]
    finally:
        trainer.model.train(training)
    return logits


def _refused(trainer: Any, got: str) -> RecipeError:
    kind = trainer.model.config.model_type
    return RecipeError(
        f"packing={trainer.args.packing_strategy} for a model of the kind {kind}",
        got=got,
        needed="a model that masks attention between the examples of a row",
        do="Pass packing=none, or packing=wrapped for running text, whose rows are cut from one text after the other",
    )
