"""The summary of a comparison: for each method its frontier beside that of the one it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any

from orthotune.experiments.axes import AXES, Axes, Row
from orthotune.experiments.frontier_area import Point, area, forgetting_at, frontier_of, interval, joined, means, path

#: (learning rate, strength) -> seed -> (gain, forgetting)
Ways = dict[tuple[float, float], dict[int, Point]]
Line = Callable[[Mapping[Hashable, Point]], list[Point]]
#: Gains at which forgetting is reported, as shares of the largest gain that both frontiers reach.
SHARES = (0.5, 0.75, 0.9, 1.0)
#: Beyond which a difference in size is reported: ranks are whole numbers, so that sizes cannot be equal to the digit.
SIZE_TOLERANCE = 0.1


def points_of(rows: Sequence[Row], axes: Axes = AXES, prefix: str = "") -> dict[str, Ways]:
    """Method -> (learning rate, strength) -> seed -> (gain, forgetting); what was not measured is skipped.

    Args:
        rows: of a comparison.
        axes: its axes.
        prefix: of their columns: ``test_`` for what was measured on test data.
    """
    found: dict[str, Ways] = {}
    for row in rows:
        point = axes.point(row, prefix)
        if point is not None and row.get("learning_rate") is not None:  # the base model has none
            way = (row["learning_rate"], row.get("strength", 1.0))
            found.setdefault(row["method"], {}).setdefault(way, {})[row["seed"]] = point
    return found


def chosen_ways(rows: Sequence[Row], axes: Axes = AXES) -> dict[str, set[Hashable]]:
    """Method -> the (learning rate, strength) whose means over the seeds make its frontier.

    Args:
        rows: of a comparison.
        axes: its axes.
    """
    return {name: set(frontier_of(means(ways, _seeds(ways)))) for name, ways in points_of(rows, axes).items()}


def summary(rows: Sequence[Row], against: str, axes: Axes = AXES) -> dict[str, Any]:
    """The frontier of each method as figures, on the test data if they were measured.

    ``area`` is the mean forgetting over the gains up to the largest that both it and ``against`` reach, ``at`` the
    forgetting at shares of that gain; each with the other's, the difference, and a bootstrap interval of the difference
    over seeds sampled in pairs. Of test data every chosen way is part of the line. Units: those of the axes.

    Args:
        rows: of a comparison.
        against: the method that the others are compared with.
        axes: of the comparison.
    """
    tested = any(axes.point(row, "test_") is not None for row in rows)
    methods = points_of([row for row in rows if row.get("chosen", True)], axes, "test_" if tested else "")
    against = against if against in methods else next(iter(methods), against)
    other, found = methods.get(against, {}), {}
    for name, ways in methods.items():
        seeds = sorted(set(_seeds(ways)) & set(_seeds(other)))
        if seeds:
            found[name] = _beside(ways, other, seeds, joined if tested else path) | _cost(rows, name)
    return {"against": against, "data": "test" if tested else "validation", "contenders": found}


def size_notes(rows: Sequence[Row], against: str) -> list[str]:
    """A line for each method that trains more or fewer parameters, or steps, than the one it is compared with.

    Args:
        rows: of a comparison.
        against: the method that the others are compared with.
    """
    first = {row["method"]: row for row in reversed(rows)}
    other = first.get(against, {})
    lines = []
    for name, row in first.items():
        if {"trainable_parameters", "steps"} <= row.keys() & other.keys():
            ratio = row["trainable_parameters"] / other["trainable_parameters"]
            if abs(ratio - 1) > SIZE_TOLERANCE:
                lines.append(
                    f"{name} trains {row['trainable_parameters']:,} parameters, {ratio:.2f} times {against}'s."
                )
            if row["steps"] != other["steps"]:
                lines.append(f"{name} is trained for {row['steps']} steps, {against} for {other['steps']}.")
    return lines


def _beside(ways: Ways, other: Ways, seeds: list[int], line: Line) -> Row:
    own, its = line(means(ways, seeds)), line(means(other, seeds))
    gain = min(own[-1][0], its[-1][0])

    def both(measure: Callable[[list[Point], float], float | None]) -> Row:
        def difference(sample: Sequence[int]) -> float | None:
            # The common gain is that of the sample: that of all seeds would skip the samples that learned less.
            pair = [line(means(one, sample)) for one in (ways, other)]
            common = min(frontier[-1][0] for frontier in pair)
            found = [measure(frontier, common) for frontier in pair]
            return None if None in found else found[0] - found[1]  # type: ignore[operator]

        return {
            "own": measure(own, gain),
            "other": measure(its, gain),
            "difference": difference(seeds),
            "interval": interval(difference, seeds),
        }

    at = {f"{share:g}": both(lambda f, common, share=share: forgetting_at(f, share * common)) for share in SHARES}  # type: ignore[misc]
    return {
        "largest_gain": own[-1][0],
        "common_gain": gain,
        "area": both(area),
        "at": at,
        "seeds": len(seeds),
        "frontier": own,
    }


def _cost(rows: Sequence[Row], name: str) -> Row:
    own = [row for row in rows if row["method"] == name]
    costs = ("trainable_parameters", "train_seconds", "bytes")
    return {cost: fmean(row[cost] for row in own) for cost in costs if all(row.get(cost) for row in own)}


def _seeds(ways: Ways) -> list[int]:
    """The seeds with which every way was run."""
    every = [set(by_seed) for by_seed in ways.values()]
    return sorted(set.intersection(*every)) if every else []
