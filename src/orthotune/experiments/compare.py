"""The same job by several methods, variants and learning rates: what is gained against what is forgotten.

Every run is measured on the validation data, at each strength asked for. The points of a method that no other one of
it beats are then measured on the test data, once, and are its frontier. A task that ranks its runs chooses a learning
rate for each method first: every rate is run with the first seeds, the best one with all seeds, and these runs are
tested, once, and are the only ones with points on frontiers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthotune.experiments import grid
from orthotune.experiments.axes import Row
from orthotune.experiments.frontier import draw_frontier
from orthotune.experiments.grid import load_compare
from orthotune.experiments.rates import choose, seed_means
from orthotune.experiments.settings import CompareSettings
from orthotune.experiments.summary import chosen_ways, size_notes, summary
from orthotune.experiments.task import Finished, Say, Task
from orthotune.files.json_file import write_json
from orthotune.files.tables import write_table
from orthotune.runs.directory import RunDirectory
from orthotune.runs.optional_images import not_written

__all__ = ["check", "load_compare", "run"]


def check(task: Task, settings: CompareSettings) -> list[grid.Cell]:
    """The runs of the first seeds, one of each method planned, so that faults are found before the first run begins.

    Args:
        task: the job.
        settings: of the comparison.

    Raises:
        OrthotuneError: the settings of a method do not fit the model, or it cannot be read.

    Example:
        >>> from orthotune.experiments.text_task import SFTTask
        >>> [cell.name for cell in check(SFTTask(), load_compare(SFTTask(), None, ["methods=[oft]"]))][:1]
        ['oft-lr0.0004-seed0']
    """
    asked = grid.cells(task, settings, grid.rates_of(task, settings), settings.first_seeds, first=True)
    for cell in {cell.method: cell for cell in asked}.values():
        task.check(cell.settings)
    return asked


def run(task: Task, settings: CompareSettings, say: Say = print) -> list[Row]:
    """Run what is not finished yet and return the rows of ``comparison.json``.

    There is one row per run and strength; if the task ranks its runs, one row per run. The output holds one directory
    per run, ``comparison.json`` with the summary, ``comparison.csv``, ``frontier.png`` and ``report.html``, and if the
    task ranks its runs, the points in ``points.csv``, ``equal-gain.json`` and ``equal-gain.png``. Run again after an
    interruption, it continues where it was.

    Args:
        task: the job.
        settings: of the comparison, as :func:`load_compare` gives them.
        say: called with messages.

    Raises:
        OutputError: the output cannot be written, or a run in it was made with other settings.
        OrthotuneError: the settings of a method do not fit the model; raised before the first run.

    Example:
        >>> from orthotune.experiments.registry import COMPARISONS
        >>> task = COMPARISONS["sft"].task()  # doctest: +SKIP
        >>> rows = run(task, load_compare(task, None, ["methods=[oft, lora]"]))  # doctest: +SKIP
    """
    folder = RunDirectory(settings.output).path
    asked, first = check(task, settings), settings.first_seeds
    base = task.base(folder, say)
    done = _Runs(task, settings, say, [] if base is None else [base])
    for line in task.forecast(settings, [cell.settings for cell in asked]):
        say(line)
    done.add(asked)
    if task.ranking:
        found = _of_chosen_rates(done, settings.seeds[len(first) :])
        rows, noted = done.rows, seed_means(done.every)
        if found:
            _write_points(task, found, settings.against, folder)
    else:
        rows = found = _points(done, done.rows)
        for line in size_notes(rows, settings.against):
            say(line)
        noted = summary(rows, settings.against, task.axes)
    every = [*rows, *done.last]
    grid.write_comparison(task, settings, every, summary=noted)
    write_table(folder / "comparison.csv", every, _columns(every))
    pages: dict[str, Callable[[], None]] = {
        "the images": lambda: task.draw(every, folder),
        "report.html": lambda: task.page(settings.model_dump(mode="json"), every, noted, folder),
    }
    for name, draw in pages.items():
        if missing := not_written(draw, name):
            say(missing)
    return every


@dataclass
class _Runs:
    """The finished runs of a comparison.

    Args:
        task, settings, say: as for :func:`run`.
        last: the row of the base model, if there is one.
        rows: one for each run.
        made: the settings of each run, by name.
    """

    task: Task
    settings: CompareSettings
    say: Say
    last: list[Row]
    rows: list[Row] = field(default_factory=list)
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def every(self) -> list[Row]:
        return [*self.rows, *self.last]

    def records(self, job: grid.Job[Any], asked: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        return grid.records(job, asked, self.settings.parallel, self.say)

    def add(self, cells: Sequence[grid.Cell]) -> None:
        """Run the cells, and write the rows after each one."""
        asked = [(cell.name, cell.settings) for cell in cells]
        for number, (cell, (name, record)) in enumerate(zip(cells, self.records(self.task.run, asked), strict=True), 1):
            self.made[name] = cell.settings
            self.rows.append(_named(cell, self.task) | self.task.row(record, self.settings.output / name))
            self.say(f"{number} of {len(cells)}: {name}{self.task.outcome(record)}")
            grid.write_comparison(self.task, self.settings, self.every)


def _named(cell: grid.Cell, task: Task) -> Row:
    row: Row = {"run": cell.name, "method": cell.method, "learning_rate": cell.settings.learning_rate}
    if task.ranking:
        return {**row, "seed": cell.settings.seed, "chosen": False}
    return {**row, "strength": 1.0, "seed": cell.settings.seed}


def _of_chosen_rates(done: _Runs, seeds: list[int]) -> list[Row]:
    """Choose a rate for each method, run it with the other seeds, test its runs, and return the points of these."""
    best = choose(done.rows, done.task.ranking)
    done.say("chosen on the validation split: " + ", ".join(f"{method} {rate:g}" for method, rate in best.items()))
    chosen = {method: [rate] for method, rate in best.items()}
    done.add(grid.cells(done.task, done.settings, chosen, seeds, first=False))
    tested = [row for row in done.rows if row["learning_rate"] == best[row["method"]]]
    for row in tested:
        row |= {"chosen": True, **done.task.tested(done.made[row["run"]], done.say)}
    return [] if done.settings.strengths == [1.0] else _points(done, tested)


def _points(done: _Runs, rows: list[Row]) -> list[Row]:
    """A row for each run and strength; the points on the frontiers are marked as chosen, and tested."""
    task, strengths = done.task, done.settings.strengths
    found = rows
    if strengths != [1.0]:
        found = []
        asked = [(row["run"], Finished(done.made[row["run"]], strengths)) for row in rows]
        for row, (name, measured) in zip(rows, done.records(task.measure, asked), strict=True):
            done.say(f"strengths of {name}")
            found += [{**task.point(row, strength), **measured[strength]} for strength in strengths]
    chosen = chosen_ways(found, task.axes)
    for point in found:
        point["chosen"] = (point["learning_rate"], point["strength"]) in chosen.get(point["method"], ())
        point |= dict.fromkeys(f"test_{axis.column}" for axis in (task.axes.gain, task.axes.forgetting))
    _test(done, [point for point in found if point["chosen"]])
    return found


def _test(done: _Runs, chosen: list[Row]) -> None:
    """Add to the chosen points what the test data say, in columns ``test_...``."""
    data = done.task.test_data(done.settings, list(done.made.values()))
    if data is None:
        done.say(f"{done.task.without_test_data}: the frontiers are those of the data by which they were chosen.")
        return
    points: dict[str, list[Row]] = {}
    for point in chosen:
        points.setdefault(point["run"], []).append(point)
    asked = [(name, Finished(done.made[name], [one["strength"] for one in own], data)) for name, own in points.items()]
    for name, measured in done.records(done.task.measure, asked):
        done.say(f"test data, {name}")
        for point in points[name]:
            point |= {f"test_{column}": value for column, value in measured[point["strength"]].items()}


def _write_points(task: Task, found: list[Row], against: str, folder: Path) -> None:
    write_table(folder / "points.csv", found, _columns(found))
    not_written(lambda: draw_frontier(found, folder / "equal-gain.png", task.axes), "equal-gain.png")
    write_json(folder / "equal-gain.json", summary(found, against, task.axes))


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))
