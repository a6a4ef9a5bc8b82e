"""Direct preference optimization: answers that were chosen become likelier than rejected ones, close to the base.

TRL's DPOTrainer; Rafailov et al. 2023, arXiv 2305.18290. The reference model is the base with its adapter off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from trl import DPOTrainer

from orthotune.recipes.preference_job import Adapt, PreferenceRecipe, preference_job, run_preferences
from orthotune.recipes.preference_settings import PreferenceSettings
from orthotune.recipes.text_job import TrainerInputs
from orthotune.recipes.text_plan import plan_text
from orthotune.recipes.text_run import Callbacks, Say
from orthotune.runs.record import RunRecord
from orthotune.text.preference_rows import PreferenceRow
from orthotune.text.preference_scores import ImplicitRewards, pair_measure
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer


class DPOSettings(PreferenceSettings):
    """Everything that decides a run of DPO.

    Example:
        >>> DPOSettings(beta=0.2).trainer
        {'beta': 0.2}
    """

    recipe: ClassVar[str] = "dpo"
    trainer_config: ClassVar[str] = "trl:DPOConfig"


def run(
    settings: DPOSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True, adapt: Adapt | None = None
) -> RunRecord:
    """Train on pairs by DPO; arguments, output and errors as for :func:`~orthotune.recipes.text_run.run_text`.

    Example:
        >>> run(DPOSettings(steps=20, output="runs/first")).scores_after["pair_accuracy"] > 0.5  # doctest: +SKIP
        True
    """
    return run_preferences(settings, RECIPE, say, callbacks, bar, adapt)


def plan(settings: DPOSettings) -> list[str]:
    """A description of the run with its memory; nothing is loaded, trained or written.

    Args:
        settings: of the run.

    Raises:
        RecipeError: as the run itself would.
    """
    return plan_text(settings, preference_job(settings, RECIPE), sequences=2)


def _build(given: TrainerInputs, table: Any, arguments: Any, reference: Any) -> RunTrainer:
    trainer: RunTrainer = run_trainer(DPOTrainer)(
        given.model, reference, args=arguments, train_dataset=table, processing_class=given.tokenizer,
        peft_config=given.adapter, parts=given.parts,
    )  # fmt: skip
    return trainer


def _scores(trainer: Any, rows: Sequence[PreferenceRow]) -> Sequence[Measure]:
    return [pair_measure(ImplicitRewards(rows, trainer.args.max_length, trainer.args.beta, trainer.ref_model))]


RECIPE = PreferenceRecipe(
    build=_build,
    scores=_scores,
    names=("pair_accuracy", "chosen_likelier"),
    entries=("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
)
