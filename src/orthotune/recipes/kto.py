"""Kahneman-Tversky optimization: learn from single answers that are wanted or not, without pairs.

TRL's KTOTrainer; Ethayarajh et al. 2024, arXiv 2402.01306. The reference model is the base with its adapter off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import model_validator
from trl import KTOTrainer

from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.preference_job import Adapt, PreferenceRecipe, preference_job, run_preferences
from orthotune.recipes.preference_settings import PreferenceSettings
from orthotune.recipes.text_job import TrainerInputs
from orthotune.recipes.text_plan import plan_text
from orthotune.recipes.text_run import Callbacks, Say
from orthotune.runs.record import RunRecord
from orthotune.text.preference_rows import PreferenceRow
from orthotune.text.preference_scores import ImplicitRewards, label_measure
from orthotune.text.preferences import LABELLED
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer


class KTOSettings(PreferenceSettings):
    """Everything that decides a run of KTO, whose ``data`` has prompt, completion and label; pairs become two answers.

    Example:
        >>> KTOSettings(desirable_weight=1.5).trainer
        {'desirable_weight': 1.5}
    """

    recipe: ClassVar[str] = "kto"
    trainer_config: ClassVar[str] = "trl:KTOConfig"
    form: ClassVar[str] = LABELLED

    @model_validator(mode="after")
    def _estimates(self) -> KTOSettings:
        if self.batch_size < 2 and self.trainer.get("loss_type", "kto") == "kto":
            fault = "batch_size=1 leaves nothing to estimate the KL term from: other answers of the same batch"
            raise SettingError("batch_size", fault, "Write batch_size=2 or more, or loss_type=apo_zero_unpaired")
        return self


def run(
    settings: KTOSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True, adapt: Adapt | None = None
) -> RunRecord:
    """Train on labelled answers; arguments, output and errors as for :func:`~orthotune.recipes.text_run.run_text`.

    Example:
        >>> run(KTOSettings(steps=20, output="runs/first")).scores_after["auc"] > 0.5  # doctest: +SKIP
        True
    """
    return run_preferences(settings, RECIPE, say, callbacks, bar, adapt)


def plan(settings: KTOSettings) -> list[str]:
    """A description of the run with its memory; nothing is loaded, trained or written.

    Args:
        settings: of the run.

    Raises:
        RecipeError: as the run itself would.
    """
    return plan_text(settings, preference_job(settings, RECIPE))


def _build(given: TrainerInputs, table: Any, arguments: Any, reference: Any) -> RunTrainer:
    trainer: RunTrainer = run_trainer(KTOTrainer)(
        given.model, reference, args=arguments, train_dataset=table, processing_class=given.tokenizer,
        peft_config=given.adapter, parts=given.parts,
    )  # fmt: skip
    wanted = sum(table["label"])
    given.notes.append(f"labels: {wanted:,} answers are wanted, {len(table) - wanted:,} are not.")
    return trainer


def _scores(trainer: Any, rows: Sequence[PreferenceRow]) -> Sequence[Measure]:
    rewards = ImplicitRewards(rows, trainer.args.max_length, trainer.args.beta, trainer.ref_model)
    return [label_measure(rewards, [bool(row.label) for row in rows])]


RECIPE = PreferenceRecipe(
    build=_build,
    scores=_scores,
    names=("auc",),
    entries=("kl", "rewards/chosen", "rewards/rejected", "rewards/margins"),
)
