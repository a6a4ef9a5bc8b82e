"""Numbers on the page, at their edges."""

from __future__ import annotations

import pytest

from orthotune.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.4126, "+0.413"), (-0.2, "−0.200"), (0.0004, "0.000"), (-0.0004, "0.000"), (None, "–"), (float("nan"), "–")],
)
def test_change(value: float | None, text: str) -> None:
    assert wording.change(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.5, "0.5 s"), (9.96, "10.0 s"), (59.4, "59 s"), (75.2, "1 min 15 s"), (3599.7, "1 h 0 min"), (None, "–")],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "yes"),
        (None, "–"),
        ({}, "–"),
        (0, "0"),
        (0.004, "0.004"),
        (["a", 1.5], "a, 1.5"),
        ({"side": "out"}, "side: out"),
    ],
)
def test_plain(value: object, text: str) -> None:
    assert wording.plain(value) == text


def test_perplexity_of_a_diverged_run_is_no_number() -> None:
    assert wording.perplexity(3.0) == "20.1"
    assert wording.perplexity(500.0) == "–"
    assert wording.perplexity(float("inf")) == "–"
