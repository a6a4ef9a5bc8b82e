"""What a run scored before and after training: an image run's images, a language model's answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orthotune.report.heat_map import is_number
from orthotune.report.wording import spoken

#: Scores that come first, in this order. The first ``CARDS`` scores are shown large, the others only in the table.
FIRST = ("score", "prompt_fidelity", "mask_iou", "subject_fidelity", "kept", "drift")
#: Scores that are better when they are lower.
LOWER = ("drift", "forgetting", "error", "answers_nats", "loss", "word_error_rate", "held_out_loss")
CARDS = 4
#: Keys in the record of a run.
SIDES = ("scores_before", "scores_after")


def scores(run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each score of a run: ``name``, ``words``, ``before``, ``after``, ``good`` and ``card``.

    ``good`` is None where nothing changed, ``card`` marks the scores that are shown large.

    Example:
        >>> scores({"scores_before": {"kept": 1.0}, "scores_after": {"kept": 0.5}})[0]["good"]
        False
    """
    before, after = (_numbers(run.get(side)) for side in SIDES)
    names = [name for name in dict.fromkeys([*before, *after]) if is_number(after.get(name))]
    ranked = sorted(names, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    return [
        {
            "name": name,
            "words": spoken(name),
            "before": before.get(name),
            "after": after[name],
            "good": _better(name, before.get(name), after[name]),
            "card": number < CARDS,
        }
        for number, name in enumerate(ranked)
    ]


def _numbers(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _better(name: str, before: Any, after: float) -> bool | None:
    if not is_number(before) or before == after:
        return None
    return (after < before) == (name.removeprefix("old_") in LOWER)
