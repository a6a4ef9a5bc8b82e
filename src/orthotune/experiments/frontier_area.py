"""Figures of a frontier: forgetting at equal gain, the area beneath it, and intervals over seeds.

A method is a set of points, one for each way of running it (a learning rate, a strength), each measured with every
seed. Its frontier goes in straight lines from the base model, which has gained and forgotten nothing, through the
points of which no other one has gained more and forgotten less.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

Point = tuple[float, float]
#: way of running -> seed -> (gain, forgetting)
Runs = Mapping[Any, Mapping[int, Point]]
#: Samples of seeds with replacement; the bounds of an interval then vary by about a hundredth of its width.
SAMPLES = 2000


def frontier_of(points: Mapping[Hashable, Point]) -> list[Hashable]:
    """The points of which no other has gained at least as much and forgotten at most as much, by rising gain.

    They are not a convex hull: the straight line from the base to a far point need not be reached by any run.

    Args:
        points: way of running -> (gain, forgetting).

    Example:
        >>> frontier_of({"a": (0.1, 0.0), "b": (0.2, 0.3), "c": (0.15, 0.4)})
        ['a', 'b']
    """
    kept: list[Hashable] = []
    least = float("inf")
    for name in sorted(points, key=lambda name: (-points[name][0], points[name][1])):
        if points[name][0] > 0 and points[name][1] < least:
            kept.append(name)
            least = points[name][1]
    return kept[::-1]


def path(points: Mapping[Hashable, Point]) -> list[Point]:
    """The frontier as (gain, forgetting) by rising gain, from the base (0, 0).

    Args:
        points: way of running -> (gain, forgetting).

    Example:
        >>> path({"a": (0.1, 0.0), "b": (0.2, 0.3), "c": (0.15, 0.4)})
        [(0.0, 0.0), (0.1, 0.0), (0.2, 0.3)]
    """
    return [(0.0, 0.0), *(points[name] for name in frontier_of(points))]


def joined(points: Mapping[Hashable, Point]) -> list[Point]:
    """All points by rising gain, from the base (0, 0): points that were chosen on other data are not chosen again.

    Args:
        points: way of running -> (gain, forgetting).

    Example:
        >>> joined({"a": (0.2, 0.3), "b": (0.1, 0.5)})
        [(0.0, 0.0), (0.1, 0.5), (0.2, 0.3)]
    """
    return [(0.0, 0.0), *sorted(point for point in points.values() if point[0] > 0)]


def forgetting_at(frontier: Sequence[Point], gain: float) -> float | None:
    """The forgetting with which ``gain`` is learned along ``frontier``; None beyond its end.

    Args:
        frontier: (gain, forgetting) by rising gain, from the base.
        gain: in the unit of the frontier.

    Example:
        >>> forgetting_at([(0.0, 0.0), (0.1, 0.0), (0.2, 0.4)], 0.15)
        0.2
    """
    if len(frontier) < 2 or gain > frontier[-1][0]:
        return None
    if gain <= frontier[1][0] and frontier[1][1] <= 0:
        return frontier[1][1]  # the first point gained more and forgot no more than the base: it is at least as good
    for (left, low), (right, high) in pairwise(frontier):
        if left <= gain <= right and right > left:
            return round(low + (gain - left) / (right - left) * (high - low), 12)
    return frontier[-1][1]


def area(frontier: Sequence[Point], upto: float, steps: int = 100) -> float | None:
    """Mean forgetting over the gains from 0 to ``upto``; None beyond the frontier's end. Less is better.

    Args:
        frontier: (gain, forgetting) by rising gain, from the base.
        upto: the largest gain.
        steps: number of gains between 0 and ``upto``.

    Example:
        >>> round(area([(0.0, 0.0), (0.2, 0.4)], 0.2), 6)
        0.2
    """
    found = [forgetting_at(frontier, upto * (step + 0.5) / steps) for step in range(steps)]
    return None if None in found or not frontier or upto > frontier[-1][0] else fmean(found)  # type: ignore[arg-type]


def means(runs: Runs, seeds: Sequence[int]) -> dict[Hashable, Point]:
    """Mean point of each way over ``seeds``; ways without one of them are skipped.

    Args:
        runs: way of running -> seed -> (gain, forgetting).
        seeds: may hold a seed several times.

    Example:
        >>> means({0.001: {0: (0.1, 0.0), 1: (0.3, 0.2)}}, [0, 1])
        {0.001: (0.2, 0.1)}
    """
    found: dict[Hashable, Point] = {}
    for way, by_seed in runs.items():
        if set(seeds) <= set(by_seed):
            gains, losses = zip(*(by_seed[seed] for seed in seeds), strict=True)
            found[way] = (fmean(gains), fmean(losses))
    return found


def interval(
    measure: Callable[[Sequence[int]], float | None], seeds: Sequence[int], level: float = 0.95
) -> tuple[float, float] | None:
    """The bootstrap interval of a measure over samples of ``seeds`` with replacement; None with a single seed.

    Also None when a twentieth of the samples cannot be measured, because the remaining ones are the better ones. With
    few seeds the interval is narrower than its level: three seeds can be sampled in ten ways only.

    Args:
        measure: from seeds to a figure, or None.
        seeds: of the runs.
        level: of the interval.

    Example:
        >>> interval(lambda seeds: sum(seeds) / len(seeds), [0, 0, 0])
        (0.0, 0.0)
    """
    if len(seeds) < 2:
        return None
    draw = random.Random(0)
    found = [measure([draw.choice(seeds) for _ in seeds]) for _ in range(SAMPLES)]
    kept = sorted(value for value in found if value is not None)
    if len(kept) < 0.95 * SAMPLES:
        return None
    edge = (1 - level) / 2
    return kept[int(edge * (len(kept) - 1))], kept[round((1 - edge) * (len(kept) - 1))]
