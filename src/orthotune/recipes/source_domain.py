"""What a run of any trainer measures beside its own scores: a loss of the target domain, and what is forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.metrics.drift import text_drift
from orthotune.metrics.text_loss import TokenRow
from orthotune.recipes.sft_data import source_examples
from orthotune.recipes.trainer_settings import TrainerSettings
from orthotune.text.data import Examples
from orthotune.text.rendered_rows import rendered_rows
from orthotune.text.sft_trainer import some_rows
from orthotune.text.step_log import Measure, domain_losses

#: The domains, as in the names of what is measured: ``new_nats``, ``old_nats``.
NEW, OLD = "new", "old"
#: Training rows that are compared with the old texts.
LOOKED_AT = 500


def domain_rows(
    settings: TrainerSettings, tokenizer: Any, new: Sequence[TokenRow] = (), old: Examples | None = None
) -> dict[str, list[TokenRow]]:
    """The held-out rows by domain: ``new``, the answers that are to be learned, and ``old``, texts of the source.

    Args:
        settings: of the run; ``eval_tokens`` limits the rows of each domain.
        tokenizer: of the model; dialogues go through its chat template.
        new: rows of the target domain, with the answers alone labelled; none where answers are not known.
        old: texts of the source domain; None takes those of the settings.

    Raises:
        DataError: no such texts, or dialogues for a tokenizer without a chat template.
    """
    examples = old or source_examples(settings.old_data)
    found = {NEW: list(new), OLD: rendered_rows(tokenizer, examples, settings.max_length) if examples else []}
    return {name: some_rows(rows, settings.eval_tokens) for name, rows in found.items() if rows}


def domain_measures(rows: Mapping[str, Sequence[TokenRow]]) -> list[Measure]:
    """The measures of a run: ``new_nats`` and ``old_nats``, from which gain and forgetting are made.

    Args:
        rows: of :func:`domain_rows`.
    """
    return [domain_losses(rows)] if rows else []


def drift_of(model: Any, base: Any, rows: Mapping[str, Sequence[TokenRow]]) -> dict[str, Any]:
    """The field ``drift`` of a run's record: KL(base || trained) on the source domain, in nats per token.

    Args:
        model: trained.
        base: the model as it was, after full finetuning; None for an adapter, which is switched off.
        rows: of :func:`domain_rows`.
    """
    return {"drift": text_drift(model, rows[OLD], base).kl} if OLD in rows else {}
