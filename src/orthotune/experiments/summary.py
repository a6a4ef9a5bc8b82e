"""What a comparison comes to: for each contender its frontier beside that of the one it is set against."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import fmean
from typing import Any

from orthotune.experiments.frontier_area import Point, area, forgetting_at, frontier_of, interval, joined, means, path

Row = dict[str, Any]
Ways = dict[Hashable, dict[int, Point]]
Line = Callable[[Mapping[Hashable, Point]], list[Point]]
#: Gains at which forgetting is told, as shares of the largest gain that both frontiers reach.
SHARES = (0.5, 0.75, 0.9, 1.0)
#: Beyond which a difference in size is told: ranks are whole numbers, so that sizes cannot be equal to the digit.
SIZE_TOLERANCE = 0.1


def points_of(rows: Sequence[Row], gain: str = "gain", forgetting: str = "forgetting") -> dict[str, Ways]:
    """Contender -> (learning rate, strength) -> seed -> (gain, forgetting); what was not measured is skipped."""
    found: dict[str, Ways] = {}
    for row in rows:
        if row.get(gain) is not None and row.get(forgetting) is not None:
            way = (row["learning_rate"], row.get("strength", 1.0))
            found.setdefault(row["method"], {}).setdefault(way, {})[row["seed"]] = (row[gain], row[forgetting])
    return found


def chosen_ways(rows: Sequence[Row]) -> dict[str, set[Hashable]]:
    """Contender -> the (learning rate, strength) whose means over the seeds make its frontier."""
    return {name: set(frontier_of(means(ways, _seeds(ways)))) for name, ways in points_of(rows).items()}


def summary(rows: Sequence[Row], against: str) -> dict[str, Any]:
    """For each contender what its frontier comes to; of the test data where they were measured.

    ``area`` is the mean forgetting over the gains up to the largest that both it and ``against`` reach, ``at`` the
    forgetting at shares of that gain; each with the other's, the difference, and a bootstrap interval of the difference
    over seeds drawn in pairs. Of test data every chosen way is part of the line. Units: nats per token.
    """
    tested = any(row.get("test_gain") is not None for row in rows)
    names = ("test_gain", "test_forgetting") if tested else ("gain", "forgetting")
    contenders = points_of([row for row in rows if row.get("chosen", True)], *names)
    against = against if against in contenders else next(iter(contenders), against)
    found: dict[str, Any] = {"against": against, "data": "test" if tested else "validation", "contenders": {}}
    other = contenders.get(against, {})
    for name, ways in contenders.items():
        seeds = sorted(set(_seeds(ways)) & set(_seeds(other)))
        if seeds:
            found["contenders"][name] = _beside(ways, other, seeds, joined if tested else path) | _cost(rows, name)
    return found


def said_of_sizes(rows: Sequence[Row], against: str) -> list[str]:
    """A line for each contender that trains more or fewer parameters, or steps, than the one it is set against."""
    first = {row["method"]: row for row in reversed(rows)}
    if (other := first.get(against)) is None:
        return []
    lines = []
    for name, row in first.items():
        ratio = row["trainable_parameters"] / other["trainable_parameters"]
        if abs(ratio - 1) > SIZE_TOLERANCE:
            lines.append(f"{name} trains {row['trainable_parameters']:,} parameters, {ratio:.2f} times {against}'s.")
        if row["steps"] != other["steps"]:
            lines.append(f"{name} is trained for {row['steps']} steps, {against} for {other['steps']}.")
    return lines


def _beside(ways: Ways, other: Ways, seeds: list[int], line: Line) -> Row:
    own, its = line(means(ways, seeds)), line(means(other, seeds))
    gain = min(own[-1][0], its[-1][0])

    def both(measure: Callable[[list[Point], float], float | None]) -> Row:
        def difference(drawn: Sequence[int]) -> float | None:
            # The common gain is that of the draw: that of all seeds would leave out the draws that learned less.
            pair = [line(means(one, drawn)) for one in (ways, other)]
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
