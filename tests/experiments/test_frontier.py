from __future__ import annotations

from typing import Any

import pytest

from orthotune.experiments.frontier_area import area, forgetting_at, frontier_of, interval, joined, means, path
from orthotune.experiments.summary import chosen_ways, points_of, size_notes, summary


def _row(method: str, rate: float, forgetting: float | None, gain: float | None, seed: int = 0) -> dict[str, Any]:
    size = {"trainable_parameters": 100, "train_seconds": 2.0, "bytes": 50, "steps": 7}
    return {"method": method, "learning_rate": rate, "seed": seed, "forgetting": forgetting, "gain": gain, **size}


def test_points_are_means_over_the_seeds() -> None:
    rows = [_row("oft", 1e-2, 0.4, 0.5), _row("oft", 1e-3, 0.1, 0.2), _row("lora", 1, 2, 3)]
    rows += [_row("oft", 1e-2, 0.6, 0.7, seed=1), _row("oft", 1e-3, 0.3, 0.4, seed=1)]
    found = points_of(rows)
    assert list(found) == ["oft", "lora"]
    assert means(found["lora"], [0]) == {(1, 1.0): (3, 2)}
    of_both = means(found["oft"], [0, 1])
    assert of_both[(1e-3, 1.0)] == pytest.approx((0.3, 0.2)) and of_both[(1e-2, 1.0)] == pytest.approx((0.6, 0.5))
    # A seed that was drawn twice counts twice.
    assert means(found["oft"], [0, 0, 1])[(1e-2, 1.0)] == pytest.approx((1.7 / 3, 1.4 / 3))


def test_runs_that_diverged_are_left_out() -> None:
    assert points_of([_row("oft", 1, None, 0.1), _row("oft", 2, 0.1, None)]) == {}
    one_seed_short = [_row("oft", 1, 0.1, 0.1), _row("oft", 2, 0.1, 0.2), _row("oft", 1, 0.2, 0.3, seed=1)]
    assert means(points_of(one_seed_short)["oft"], [0, 1]) == {(1, 1.0): pytest.approx((0.2, 0.15))}


def test_a_frontier_is_what_no_other_point_beats() -> None:
    points = {"low": (0.1, -0.02), "mid": (0.2, 0.05), "beaten": (0.15, 0.06), "high": (0.3, 0.2), "worse": (0.3, 0.25)}
    assert frontier_of(points) == ["low", "mid", "high"]
    # Above the line between its neighbours, and yet no other point is better: nobody can have that line.
    assert frontier_of({"a": (0.2, 0.0), "b": (0.3, 0.09), "c": (0.4, 0.16)}) == ["a", "b", "c"]
    # Left of the least forgetting nothing is worth having.
    assert frontier_of({"a": (0.1, -0.1), "b": (0.2, -0.3), "c": (0.3, 0.2)}) == ["b", "c"]
    # Whoever learned less than nothing is on no frontier, however little was forgotten.
    assert frontier_of({"lost": (-0.1, -0.5), "low": (0.1, 0.0)}) == ["low"]


def test_forgetting_at_a_gain_by_hand() -> None:
    frontier = path({"a": (0.2, 0.1), "b": (0.4, 0.5)})
    assert forgetting_at(frontier, 0.1) == pytest.approx(0.05)
    assert forgetting_at(frontier, 0.2) == pytest.approx(0.1)
    assert forgetting_at(frontier, 0.3) == pytest.approx(0.3)
    assert forgetting_at(frontier, 0.5) is None
    # Two triangles and a trapezium: (0.2 * 0.1 / 2 + 0.2 * (0.1 + 0.5) / 2) / 0.4.
    assert area(frontier, 0.4) == pytest.approx(0.175, abs=1e-9)
    # What was chosen on other data is not chosen again, though it bends: 0.15 lies between the first two.
    bent = joined({"a": (0.1, 0.4), "b": (0.2, 0.2), "c": (0.3, 0.3)})
    assert forgetting_at(bent, 0.15) == pytest.approx(0.3) and forgetting_at(bent, 0.1) == pytest.approx(0.4)
    # With a point that gained and made the old better, who wants less gain can have it, too.
    assert forgetting_at(path({"a": (0.2, -0.1)}), 0.05) == pytest.approx(-0.1)
    assert forgetting_at(path({}), 0.1) is None


def test_an_interval_covers_what_the_seeds_differ_by() -> None:
    low, high = interval(lambda seeds: sum(seeds) / len(seeds), [0, 1, 2, 3, 4]) or (0.0, 0.0)
    # The mean of 5 draws has a standard deviation of 0.632: two of them either way, within what 2,000 draws wobble.
    assert low == pytest.approx(2 - 1.96 * 0.632, abs=0.21) and high == pytest.approx(2 + 1.96 * 0.632, abs=0.21)
    assert interval(lambda seeds: 1.0, [3]) is None
    assert interval(lambda seeds: None, [1, 2]) is None
    # A quarter of the draws, both the first seed, is not measured: what is left is no sample of all.
    assert interval(lambda seeds: None if set(seeds) == {0} else 1.0, [0, 1]) is None


def test_two_frontiers_are_set_against_each_other() -> None:
    # One forgets half of what the other does, at every gain and with every seed.
    rows = [
        row
        for seed, more in ((0, 0.0), (1, 0.02), (2, 0.04))
        for row in (
            _row("lora", 1e-3, 0.1 + more, 0.2, seed),
            _row("lora", 2e-3, 0.4 + more, 0.4, seed),
            _row("oft", 1e-3, 0.05 + more / 2, 0.2, seed),
            _row("oft", 2e-3, 0.2 + more / 2, 0.4, seed),
            _row("oft", 5e-3, 0.9, 0.3, seed),
        )
    ]
    assert chosen_ways(rows) == {"lora": {(1e-3, 1.0), (2e-3, 1.0)}, "oft": {(1e-3, 1.0), (2e-3, 1.0)}}
    found = summary(rows, "lora")
    own = found["contenders"]["oft"]
    assert found["data"] == "validation" and own["seeds"] == 3 and own["common_gain"] == pytest.approx(0.4)
    for measured in (own["area"], *own["at"].values()):
        assert measured["own"] == pytest.approx(measured["other"] / 2)
        assert measured["difference"] == pytest.approx(-measured["own"])
        low, high = measured["interval"]
        assert low <= measured["difference"] <= high < 0
    itself = found["contenders"]["lora"]
    assert itself["area"]["difference"] == 0 and itself["area"]["interval"] == (0, 0)
    assert own["bytes"] == 50 and own["trainable_parameters"] == 100


def test_an_interval_is_of_every_draw_of_the_seeds() -> None:
    """Each draw is compared up to its own common gain: one seed that learned half is no reason to leave it out."""
    rows = [
        _row(name, 1e-3, share * gain, gain, seed)
        for seed, gain in ((0, 0.2), (1, 0.4), (2, 0.4))
        for name, share in (("lora", 1.0), ("oft", 0.5))
    ]
    own = summary(rows, "lora")["contenders"]["oft"]
    assert own["at"]["1"]["difference"] == pytest.approx(-(1.0 / 3) / 2)
    # Draws of the first seed alone and of the other two alone: half of 0.2 and half of 0.4.
    assert own["at"]["1"]["interval"] == pytest.approx((-0.2, -0.1))


def test_unequal_sizes_and_steps_are_said() -> None:
    rows = [_row("lora", 1, 0, 0), {**_row("wide", 1, 0, 0), "trainable_parameters": 260, "steps": 9}]
    assert size_notes(rows, "lora") == [
        "wide trains 260 parameters, 2.60 times lora's.",
        "wide is trained for 9 steps, lora for 7.",
    ]
    assert size_notes(rows[:1], "lora") == []
