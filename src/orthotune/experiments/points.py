"""Finished runs at strengths, as points of gain and forgetting; those that no other one beats are tested, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.experiments import grid
from orthotune.experiments.summary import chosen_ways
from orthotune.experiments.task import Finished, Row, Say, Task


def points(
    task: Task, runs: Mapping[str, Any], rows: Sequence[Row], strengths: list[float], parallel: int, say: Say
) -> list[Row]:
    """A row for each run and strength, in the order of ``rows``.

    Args:
        task: the job.
        runs: settings of the runs by name.
        rows: of the runs whose points are wanted.
        strengths: at which they are measured.
        parallel: how many runs are measured at the same time.
        say: called with messages.
    """
    asked = [(row["run"], Finished(runs[row["run"]], strengths)) for row in rows]
    found = []
    for row, (name, measured) in zip(rows, grid.records(task.measure, asked, parallel, say), strict=True):
        say(f"strengths of {name}")
        found += [{**task.point(row, strength), **measured[strength]} for strength in strengths]
    return found


def choose_and_test(
    task: Task, runs: Mapping[str, Any], found: Sequence[Row], test_data: Any, parallel: int, say: Say
) -> None:
    """Mark the points on the frontiers as chosen, and add to these what the test data say, in columns ``test_...``.

    Args:
        task: the job.
        runs: settings of the runs by name.
        found: the points.
        test_data: what the task gave; None if there are none.
        parallel: how many runs are measured at the same time.
        say: called with messages.
    """
    chosen = chosen_ways(found, task.axes)
    for point in found:
        point["chosen"] = (point["learning_rate"], point["strength"]) in chosen.get(point["method"], ())
        point |= dict.fromkeys(f"test_{axis.column}" for axis in (task.axes.gain, task.axes.forgetting))
    if test_data is None:
        say(f"{task.without_test_data}: the frontiers are those of the data by which they were chosen.")
        return
    strengths: dict[str, list[float]] = {}
    for point in found:
        if point["chosen"]:
            strengths.setdefault(point["run"], []).append(point["strength"])
    asked = [(name, Finished(runs[name], at, test_data)) for name, at in strengths.items()]
    for name, measured in grid.records(task.measure, asked, parallel, say):
        say(f"test data, {name}")
        for point in found:
            if point["run"] == name and point["chosen"]:
                point |= {f"test_{column}": value for column, value in measured[point["strength"]].items()}
