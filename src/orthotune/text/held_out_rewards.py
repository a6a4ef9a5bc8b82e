"""The rewards of a model's likeliest answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.metrics.decoding import continued
from orthotune.text.prompts import PROMPT, Prompts, prompt_ids
from orthotune.text.rewards import Reward
from orthotune.text.step_log import Measure

#: Answers that are written at the same time.
AT_ONCE = 16
TOTAL = "held_out_reward"


def held_out_rewards(
    trainer: Any, prompts: Prompts, rewards: Sequence[Reward], limit: int, template: Mapping[str, Any] | None = None
) -> Measure:
    """The measure of a run with rewards: each token of an answer is the likeliest one.

    Args:
        trainer: with the tokenizer and the state that functions are given.
        prompts: held-out ones.
        rewards: of the run.
        limit: the most tokens of an answer.
        template: further arguments of the chat template.

    Returns:
        A function from a model to ``held_out_reward``, the mean over the prompts of the weighted sum of the rewards,
        and, of several rewards, the mean of each one as ``held_out_NAME``.
    """
    tokenizer, texts = trainer.processing_class, [row[PROMPT] for row in prompts.rows]
    columns = {name: [row.get(name) for row in prompts.rows] for row in prompts.rows for name in row if name != PROMPT}

    def measure(model: Any) -> dict[str, float]:
        ids = prompt_ids(tokenizer, texts, **(template or {}))
        written: list[list[int]] = []
        for start in range(0, len(ids), AT_ONCE):
            written += continued(model, tokenizer, ids[start : start + AT_ONCE], limit)
        answers: list[Any] = tokenizer.batch_decode(written, skip_special_tokens=True)
        if prompts.conversational:
            answers = [[{"role": "assistant", "content": answer}] for answer in answers]
        given = {"prompts": texts, "completions": answers, "completion_ids": written, "trainer_state": trainer.state}
        unlogged = {"log_extra": _unlogged, "log_metric": _unlogged}
        values = {reward.name: reward(**given, **unlogged, **columns) for reward in rewards}
        return _means(values, {reward.name: reward.weight for reward in rewards})

    return measure


def _means(values: Mapping[str, Sequence[float | None]], weights: Mapping[str, float]) -> dict[str, float]:
    rows = list(zip(*values.values(), strict=True))
    sums = [
        sum(weight * value for weight, value in zip(weights.values(), row, strict=True) if value is not None)
        for row in rows
        if any(value is not None for value in row)
    ]
    found = {TOTAL: sum(sums) / len(sums)} if sums else {}
    if len(values) > 1:
        for name, column in values.items():
            known = [value for value in column if value is not None]
            if known:
                found[f"held_out_{name}"] = sum(known) / len(known)
    return found


def _unlogged(name: str, value: Any) -> None:
    """Drop what a function wants to log: a measurement is no step."""
