"""Says when there is nothing to learn: the rewards of all answers to a prompt are equal, for every prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.text.rewards import text_of

#: TRL's entry of the log: the share of the prompts whose answers all have the same reward.
ENTRY = "frac_reward_zero_std"
#: Steps without any difference before this is reported, and the share of all steps above which the record has it.
STEPS, SHARE = 10, 0.5
REMEDY = (
    "Nothing is learned from such prompts. Choose prompts that the model answers right sometimes and wrong sometimes, "
    "a larger num_generations or temperature, or a reward with more values than two (length, a part of the answer)."
)


class EqualRewards(TrainerCallback):
    """Counts the steps at which all rewards of every prompt were equal, and reports them.

    Args:
        say: called with the report, once.
        notes: of the run's record, for the share over the complete run.
        trainer: whose last completions are shown.
    """

    def __init__(self, say: Callable[[str], None], notes: list[str], trainer: Any) -> None:
        self.say, self.notes, self.trainer = say, notes, trainer

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        logs = seen["logs"]
        if ENTRY not in logs:  # a step that learns from the texts of an earlier one
            return
        steps, equal = _counts(state)
        if steps == equal == STEPS:
            self.say(
                f"In the first {STEPS} steps all answers to a prompt had the same reward, {logs['reward']:g} on average"
                f"{self._last()}. {REMEDY}"
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        steps, equal = _counts(state)
        if steps and equal > SHARE * steps:
            self.notes.append(f"{equal} of {steps} steps had equal rewards for all answers to a prompt. {REMEDY}")

    def _last(self) -> str:
        completions = getattr(self.trainer, "_logs", {}).get("completion")
        return f"; the last one was {text_of(completions[-1])[:80]!r}" if completions else ""


def _counts(state: TrainerState) -> tuple[int, int]:
    """Steps with new answers, and those of equal rewards, by the log: checkpoints keep it."""
    shares = [logs[ENTRY] for logs in state.log_history if ENTRY in logs]
    return len(shares), sum(share == 1 for share in shares)
