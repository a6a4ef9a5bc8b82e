"""Odds ratio preference optimization: supervised finetuning and preferences in one loss, without a reference model.

TRL's ORPOTrainer; Hong et al. 2024, arXiv 2403.07691.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from trl import apply_chat_template
from trl.experimental.orpo import ORPOTrainer

from orthotune.recipes.preference_job import Adapt, PreferenceRecipe, preference_job, run_preferences
from orthotune.recipes.preference_settings import PreferenceSettings
from orthotune.recipes.text_job import TrainerInputs
from orthotune.recipes.text_plan import plan_text
from orthotune.recipes.text_run import Callbacks, Say
from orthotune.runs.data_files import Row
from orthotune.runs.record import RunRecord
from orthotune.text.answers import tools_of
from orthotune.text.preference_rows import PreferenceRow
from orthotune.text.preference_scores import likelihood_measure
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer


class ORPOSettings(PreferenceSettings):
    """Everything that decides a run of ORPO.

    Example:
        >>> ORPOSettings(beta=0.2).trainer
        {'beta': 0.2}
    """

    recipe: ClassVar[str] = "orpo"
    trainer_config: ClassVar[str] = "trl.experimental.orpo:ORPOConfig"


def run(
    settings: ORPOSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True, adapt: Adapt | None = None
) -> RunRecord:
    """Train on pairs by ORPO; arguments, output and errors as for :func:`~orthotune.recipes.text_run.run_text`.

    Example:
        >>> run(ORPOSettings(steps=20, output="runs/first")).gain > 0  # doctest: +SKIP
        True
    """
    return run_preferences(settings, RECIPE, say, callbacks, bar, adapt)


def plan(settings: ORPOSettings) -> list[str]:
    """A description of the run with its memory; nothing is loaded, trained or written.

    Args:
        settings: of the run.

    Raises:
        RecipeError: as the run itself would.
    """
    # TRL's loss keeps the logits of every pair, and of the chosen answers their logarithms of probabilities, too.
    return plan_text(settings, preference_job(settings, RECIPE), sequences=2, logits=1.5 * settings.max_length)


def _build(given: TrainerInputs, table: Any, arguments: Any, reference: Any) -> RunTrainer:
    # Here, because TRL's trainer renders dialogues without the tools of their rows.
    rendered = table.map(_as_texts, fn_kwargs={"tokenizer": given.tokenizer}, remove_columns=table.column_names)
    trainer: RunTrainer = run_trainer(ORPOTrainer)(
        given.model, args=arguments, train_dataset=rendered, processing_class=given.tokenizer,
        peft_config=given.adapter, parts=given.parts,
    )  # fmt: skip
    return trainer


def _as_texts(row: Row, tokenizer: Any) -> Row:
    """A pair of dialogues as the texts that the chat template makes of them; a pair of texts as it is."""
    pair = {column: row[column] for column in ("prompt", "chosen", "rejected")}
    if not isinstance(row["prompt"], list):
        return pair
    rendered: Row = apply_chat_template(pair, tokenizer, tools_of(row))
    return rendered


def _scores(trainer: Any, rows: Sequence[PreferenceRow]) -> Sequence[Measure]:
    return [likelihood_measure(rows, trainer.args.max_length)]


RECIPE = PreferenceRecipe(
    build=_build, scores=_scores, reference=False,
    entries=("nll_loss", "log_odds_ratio", "rewards/accuracies", "rewards/margins"),
)  # fmt: skip
