"""One learning rate for each method, chosen by the mean scores of its runs, and what the chosen runs come to."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from orthotune.experiments.axes import Row


def choose(rows: Sequence[Row], ranking: Sequence[str]) -> dict[str, float]:
    """For each method the rate with the best mean score; among equals the next score decides, then the lower rate.

    Args:
        rows: of the runs.
        ranking: columns of scores, the deciding one first.

    Example:
        >>> tried = [{"method": "oft", "learning_rate": rate, "score": 1 - rate} for rate in (0.5, 0.1)]
        >>> choose(tried, ["score"])
        {'oft': 0.1}
    """
    best: dict[str, float] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        rates = {row["learning_rate"] for row in rows if row["method"] == method}

        def worth(rate: float, method: str = method) -> tuple[float, ...]:
            same = [row for row in rows if (row["method"], row["learning_rate"]) == (method, rate)]
            return (*(fmean(row[key] or 0.0 for row in same) for key in ranking), -rate)

        best[method] = max(rates, key=worth)
    return best


def seed_means(rows: Sequence[Row]) -> dict[str, dict[str, tuple[float, float]]]:
    """For each method mean and standard deviation over the seeds of its chosen runs, by column; test scores first."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        chosen = [row for row in rows if row["method"] == method and row["chosen"]]
        found[method] = {}
        for key in chosen[0] if chosen else ():
            values = [row[key] for row in chosen if isinstance(row[key], float)]
            if values and key != "learning_rate":
                found[method][key] = (fmean(values), stdev(values) if len(values) > 1 else 0.0)
    return found
