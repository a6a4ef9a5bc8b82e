"""How well a model tells held-out answers apart: by its rewards, against the model before training, or by its own odds.

The implicit reward of an answer under DPO and KTO is beta * (log p(answer) - log p_reference(answer)), Rafailov et al.
2023 (arXiv 2305.18290), equation 5; the reference is the model with its adapter off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from orthotune.metrics.text_loss import TokenRow, row_losses
from orthotune.text.preference_rows import PreferenceRow
from orthotune.text.step_log import Measure

#: Rows of a batch for a reward model, which gives one number a row.
REWARDED_AT_ONCE = 16


def accuracy(better: Sequence[float], worse: Sequence[float]) -> float:
    """The share of pairs in which ``better`` is larger; a tie counts one half, as a guess would.

    Args:
        better: scores of the chosen answers.
        worse: scores of the rejected answers, in the same order.

    Example:
        >>> accuracy([1.0, 2.0, 0.0], [0.0, 2.0, 1.0])
        0.5
    """
    return sum((a > b) + (a == b) / 2 for a, b in zip(better, worse, strict=True)) / len(better)


def area_under_curve(wanted: Sequence[float], unwanted: Sequence[float]) -> float:
    """The area under the ROC curve: the share of all couples of a wanted and an unwanted answer in the right order.

    Args:
        wanted: scores of the answers with label true.
        unwanted: scores of those with label false.

    Example:
        >>> area_under_curve([2.0, 1.0], [0.0, 1.5])
        0.75
    """
    couples = [(a, b) for a in wanted for b in unwanted]
    return accuracy([a for a, _ in couples], [b for _, b in couples])


class ImplicitRewards:
    """Implicit rewards of held-out answers; what the reference gives them is computed once.

    Args:
        rows: tokens of the examples.
        max_length: tokens of a prompt with its answer.
        beta: of the trainer.
        reference: the model before training, for full finetuning; None switches the adapter of the model off.

    Attributes:
        before: log-probabilities of all answers under the reference; None until they were needed.
    """

    def __init__(self, rows: Sequence[PreferenceRow], max_length: int, beta: float, reference: Any = None) -> None:
        self.token_rows = [row for one in rows for row in one.rows(max_length)]
        self.beta, self.reference = beta, reference
        self.before: list[float] | None = None

    def __call__(self, model: Any) -> tuple[list[float], list[float]]:
        """The rewards of all answers, and their log-probabilities per token, in nats."""
        if self.before is None:
            if self.reference is not None:
                self.before = _log_probabilities(self.reference, self.token_rows)
            else:
                with model.disable_adapter():
                    self.before = _log_probabilities(model, self.token_rows)
        losses = row_losses(model, self.token_rows)
        rewards = [self.beta * (-nats - before) for (nats, _), before in zip(losses, self.before, strict=True)]
        return rewards, [-nats / max(1, count) for nats, count in losses]


def pair_measure(rewards: ImplicitRewards) -> Measure:
    """``pair_accuracy`` and ``reward_margin`` of held-out pairs by implicit rewards, and ``chosen_likelier``.

    ``chosen_likelier`` is the share of pairs whose chosen answer the model itself finds likelier per token. The rewards
    of a model that was not trained yet are all 0, and its accuracy one half.

    Args:
        rewards: of the pairs.
    """

    def measure(model: Any) -> dict[str, float]:
        given, likely = rewards(model)
        return {
            "pair_accuracy": accuracy(given[::2], given[1::2]),
            "reward_margin": sum(given[::2]) / len(given[::2]) - sum(given[1::2]) / len(given[1::2]),
            "chosen_likelier": accuracy(likely[::2], likely[1::2]),
        }

    return measure


def label_measure(rewards: ImplicitRewards, labels: Sequence[bool]) -> Measure:
    """``auc`` and ``reward_margin`` of held-out labelled answers by implicit rewards.

    Args:
        rewards: of the answers.
        labels: of the answers; both labels are there.
    """

    def measure(model: Any) -> dict[str, float]:
        given, _ = rewards(model)
        wanted = [value for value, label in zip(given, labels, strict=True) if label]
        unwanted = [value for value, label in zip(given, labels, strict=True) if not label]
        margin = sum(wanted) / len(wanted) - sum(unwanted) / len(unwanted)
        return {"auc": area_under_curve(wanted, unwanted), "reward_margin": margin}

    return measure


def likelihood_measure(rows: Sequence[PreferenceRow], max_length: int) -> Measure:
    """``pair_accuracy`` of held-out pairs by log-probabilities per token, which is what ORPO's odds are made from.

    Args:
        rows: tokens of the pairs.
        max_length: tokens of a prompt with its answer.
    """
    token_rows = [row for one in rows for row in one.rows(max_length)]

    def measure(model: Any) -> dict[str, float]:
        likely = [-nats / max(1, count) for nats, count in row_losses(model, token_rows)]
        margin = (sum(likely[::2]) - sum(likely[1::2])) / len(likely[::2])
        return {"pair_accuracy": accuracy(likely[::2], likely[1::2]), "log_probability_margin": margin}

    return measure


def reward_measure(score: Callable[[Any], list[float]]) -> Measure:
    """``pair_accuracy`` and ``reward_margin`` of held-out pairs by a reward model.

    Args:
        score: gives the rewards of the model, of a chosen and a rejected answer in turn.
    """

    def measure(model: Any) -> dict[str, float]:
        given = score(model)
        margin = (sum(given[::2]) - sum(given[1::2])) / len(given[::2])
        return {"pair_accuracy": accuracy(given[::2], given[1::2]), "reward_margin": margin}

    return measure


@torch.no_grad()
def rewards_of(model: Any, rows: Sequence[TokenRow], padding: int) -> list[float]:
    """The rewards that a reward model gives, in its order.

    Args:
        model: a sequence classification model with one output.
        rows: tokens, each row by itself.
        padding: id of the padding token, by which the model finds the end of a row.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    found: list[float] = []
    for start in range(0, len(rows), REWARDED_AT_ONCE):
        batch = [torch.tensor(row.input_ids) for row in rows[start : start + REWARDED_AT_ONCE]]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True, padding_value=padding)
        lengths = torch.tensor([len(row) for row in batch])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
        found += logits[:, 0].float().tolist()
    model.train(was_training)
    return found


def _log_probabilities(model: Any, rows: Sequence[TokenRow]) -> list[float]:
    return [-nats for nats, _ in row_losses(model, rows)]
