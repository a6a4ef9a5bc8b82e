"""A reward model: one number per answer, larger for chosen answers than for rejected ones (Bradley and Terry 1952).

TRL's RewardTrainer, on a sequence classification model. Its head is new, trained in full, and saved with the adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pydantic import model_validator
from transformers import AutoModelForSequenceClassification
from trl import RewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.preference_job import Adapt, PreferenceRecipe, run_preferences
from orthotune.recipes.preference_settings import PreferenceSettings
from orthotune.recipes.text_job import TrainerInputs, source_of
from orthotune.recipes.text_run import Callbacks, Say
from orthotune.runs.record import RunRecord
from orthotune.text.causal_model import load_model
from orthotune.text.preference_rows import PreferenceRow
from orthotune.text.preference_scores import reward_measure, rewards_of
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer


class RewardSettings(PreferenceSettings):
    """Everything that decides the training of a reward model.

    Example:
        >>> RewardSettings(center_rewards_coefficient=0.01).trainer
        {'center_rewards_coefficient': 0.01}
    """

    recipe: ClassVar[str] = "reward"
    trainer_config: ClassVar[str] = "trl:RewardConfig"
    #: A new head learns more than a tenth of what supervised finetuning does: rates are those of TRL's default, 1e-4.
    rates: ClassVar[dict[str, float]] = {"oft": 4e-4, "coft": 4e-4, "lora": 1e-4, "full": 1e-5}
    complete: ClassVar[bool] = True
    predicts: ClassVar[bool] = False

    @model_validator(mode="after")
    def _predicts_no_tokens(self) -> RewardSettings:
        for key, given in (("old_data", self.old_data), ("rewind", self.rewind != "none"),
                           ("stop_when", self.stop_when), ("result", self.result == "best"),
                           ("eval_tokens", self.eval_tokens)):  # fmt: skip
            if given:
                fault = f"{key} is about losses of tokens, which a reward model does not predict"
                raise SettingError(key, fault, f"Leave {key} out")
        return self


def run(
    settings: RewardSettings, say: Say = print, callbacks: Callbacks = (), bar: bool = True, adapt: Adapt | None = None
) -> RunRecord:
    """Train a reward model; arguments, output and errors as for :func:`~orthotune.recipes.text_run.run_text`.

    Example:
        >>> run(RewardSettings(steps=20, output="runs/first")).scores_after["pair_accuracy"] > 0.5  # doctest: +SKIP
        True
    """
    return run_preferences(settings, RECIPE, say, callbacks, bar, adapt)


def load_reward_model(settings: PreferenceSettings, dtype: torch.dtype) -> Any:
    """The model of the settings with a new head of one output, whose start the seed decides.

    Args:
        settings: of the run.
        dtype: of the weights that are not quantized.

    Raises:
        RecipeError: no such model, or none that can classify sequences.
    """
    torch.manual_seed(settings.seed)
    kind = AutoModelForSequenceClassification
    with suppress_seqcls_warning():  # that the head is not in the checkpoint
        return load_model(source_of(settings), dtype, settings.quantization, kind=kind, num_labels=1)


def _build(given: TrainerInputs, table: Any, arguments: Any, reference: Any) -> RunTrainer:
    trainer: RunTrainer = run_trainer(RewardTrainer)(
        given.model, args=arguments, train_dataset=table, processing_class=given.tokenizer,
        peft_config=given.adapter, parts=given.parts,
    )  # fmt: skip
    return trainer


def _scores(trainer: Any, rows: Sequence[PreferenceRow]) -> Sequence[Measure]:
    token_rows = [row for one in rows for row in one.rows(trainer.args.max_length)]
    return [reward_measure(lambda model: rewards_of(model, token_rows, trainer.processing_class.pad_token_id))]


RECIPE = PreferenceRecipe(
    build=_build, scores=_scores, reference=False, task="SEQ_CLS", model=load_reward_model,
    entries=("accuracy", "margin", "mean_reward"),
)  # fmt: skip
