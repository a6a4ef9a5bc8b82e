"""Rules that end a training: each of them on scripted measurements."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orthotune.errors import RecipeError
from orthotune.runs.metrics_log import net_gain
from orthotune.text.early_stopping import StopRules


def _lines(*pairs: tuple[float | None, float | None]) -> list[dict[str, Any]]:
    return [{"step": 10 * number, "gain": gain, "forgetting": lost} for number, (gain, lost) in enumerate(pairs)]


COURSE = _lines((0.0, 0.0), (0.2, 0.01), (0.3, 0.05), (0.35, 0.12), (0.36, 0.2))


def _end(rules: StopRules, lines: list[dict[str, Any]]) -> tuple[str, int] | None:
    """The rule and the step at which a run with these measurements ends."""
    for number in range(1, len(lines) + 1):
        if found := rules.reached(lines[:number]):
            return found.rule, found.step
    return None


@pytest.mark.parametrize(
    ("rules", "end"),
    [
        (StopRules(), None),
        (StopRules(forgetting=0.05), ("forgetting", 30)),  # more than 0.05: 0.05 itself goes on
        (StopRules(forgetting=0.2), None),
        (StopRules(forgetting=0), ("forgetting", 10)),
        (StopRules(gain=0.3), ("gain", 20)),  # at least
        (StopRules(gain=0.5), None),
        (StopRules(patience=1), ("patience", 30)),  # 0.25 at step 20 is the best, 0.23 at step 30
        (StopRules(patience=2), ("patience", 40)),
        (StopRules(patience=3), None),
        (StopRules(forgetting=0.1, gain=0.3, patience=1), ("gain", 20)),
        (StopRules(forgetting=0.1, gain=0.35), ("forgetting", 30)),  # both hold: what is lost is named
    ],
)
def test_a_rule_ends_at_its_measurement(rules: StopRules, end: tuple[str, int] | None) -> None:
    assert _end(rules, COURSE) == end


def test_values_and_the_best_measurement_are_named() -> None:
    found = StopRules(patience=2).reached(COURSE)
    assert found is not None and found.record() == {
        "rule": "patience", "limit": 2, "step": 40, "gain": 0.36, "forgetting": 0.2, "best_step": 20,
    }  # fmt: skip
    words = found.sentence(200)
    assert "stop_when.patience=2" in words and "after step 40 of 200" in words and "step 20" in words
    found = StopRules(forgetting=0.05).reached(COURSE[:4])
    assert found is not None and "best_step" not in found.record()
    words = found.sentence(200)
    for part in ("stop_when.forgetting=0.05", "after step 30 of 200", "gain +0.350", "forgetting +0.120"):
        assert part in words


def test_a_measurement_that_is_not_finite_is_no_better_and_reaches_no_limit() -> None:
    lines = _lines((0.0, 0.0), (0.2, 0.1), (None, None), (math.nan, math.nan))
    assert _end(StopRules(forgetting=0.5, gain=0.5), lines) is None
    assert _end(StopRules(patience=2), lines) == ("patience", 30)


def test_a_run_that_only_loses_ends_by_patience() -> None:
    assert _end(StopRules(patience=2), _lines((0, 0), (-0.1, 0), (-0.2, 0.1), (0.0, 0.0))) == ("patience", 20)


def test_net_gain() -> None:
    assert net_gain({"gain": 0.5, "forgetting": 0.125}) == 0.375
    assert net_gain({"gain": 0.5}) == 0.5  # no source domain
    assert net_gain({"gain": 0.5, "forgetting": None}) is None  # measured, and not finite
    assert net_gain({"forgetting": 0.1}) is None and net_gain({"gain": math.inf}) is None


def test_a_rule_needs_its_measure() -> None:
    StopRules(gain=1.0, patience=2).require({"gain": 0.0})
    for rules, measured, words in (
        (StopRules(forgetting=1.0), {"gain": 0.0}, "stop_when.forgetting.*no loss of the source domain"),
        (StopRules(gain=1.0), {}, "stop_when.gain.*no loss of the target domain"),
        (StopRules(patience=1), {"score": 1.0}, "stop_when.patience.*no loss of the target domain"),
    ):
        with pytest.raises(RecipeError, match=words):
            rules.require(measured)
