from __future__ import annotations

import random
from collections.abc import Hashable
from itertools import pairwise
from typing import Any

import pytest

from orthotune.recipes.compare_summary import chosen_ways, points_of, said_of_sizes, summary
from orthotune.recipes.frontier_area import area, forgetting_at, frontier_of, interval, means, path


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
    # A point above the line between two others is none of it, however little it is beaten by either.
    assert frontier_of({"a": (0.2, 0.0), "b": (0.3, 0.09), "c": (0.4, 0.16)}) == ["a", "c"]
    # Left of the least forgetting nothing is worth having.
    assert frontier_of({"a": (0.1, -0.1), "b": (0.2, -0.3), "c": (0.3, 0.2)}) == ["b", "c"]
    # Whoever learned less than nothing is on no frontier, however little was forgotten.
    assert frontier_of({"lost": (-0.1, -0.5), "low": (0.1, 0.0)}) == ["low"]


def test_a_further_point_never_moves_a_frontier_back() -> None:
    draw = random.Random(0)
    points: dict[Hashable, tuple[float, float]] = {"end": (0.5, 0.5)}
    before = {gain: 1.0 for gain in (0.1, 0.2, 0.3, 0.4, 0.5)}
    for number in range(40):
        points[number] = (draw.uniform(0, 0.5), draw.uniform(-0.2, 0.6))
        for gain, was in before.items():
            now = forgetting_at(path(points), gain)
            # Sums round: a frontier through the same points may differ in the last digit.
            assert now is not None and now <= was + 1e-9
            before[gain] = now
    assert all(low <= high for low, high in pairwise(before.values()))


def test_forgetting_at_a_gain_by_hand() -> None:
    frontier = path({"a": (0.2, 0.1), "b": (0.4, 0.5)})
    assert forgetting_at(frontier, 0.1) == pytest.approx(0.05)
    assert forgetting_at(frontier, 0.2) == pytest.approx(0.1)
    assert forgetting_at(frontier, 0.3) == pytest.approx(0.3)
    assert forgetting_at(frontier, 0.5) is None
    # Two triangles and a trapezium: (0.2 * 0.1 / 2 + 0.2 * (0.1 + 0.5) / 2) / 0.4.
    assert area(frontier, 0.4) == pytest.approx(0.175, abs=1e-9)
    # With a point that gained and made the old better, who wants less gain can have it, too.
    assert forgetting_at(path({"a": (0.2, -0.1)}), 0.05) == pytest.approx(-0.1)
    assert forgetting_at(path({}), 0.1) is None


def test_an_interval_covers_what_the_seeds_differ_by() -> None:
    low, high = interval(lambda seeds: sum(seeds) / len(seeds), [0, 1, 2, 3, 4]) or (0.0, 0.0)
    # The mean of 5 draws has a standard deviation of 0.632: two of them either way, within what 2,000 draws wobble.
    assert low == pytest.approx(2 - 1.96 * 0.632, abs=0.21) and high == pytest.approx(2 + 1.96 * 0.632, abs=0.21)
    assert interval(lambda seeds: 1.0, [3]) is None
    assert interval(lambda seeds: None, [1, 2]) is None


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


def test_unequal_sizes_and_steps_are_said() -> None:
    rows = [_row("lora", 1, 0, 0), {**_row("wide", 1, 0, 0), "trainable_parameters": 260, "steps": 9}]
    assert said_of_sizes(rows, "lora") == [
        "wide trains 260 parameters, 2.60 times lora's.",
        "wide is trained for 9 steps, lora for 7.",
    ]
    assert said_of_sizes(rows[:1], "lora") == []
