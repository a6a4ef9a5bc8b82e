"""The same comparison on several models or domains, the rungs of a ladder, by one command and in one table.

A recipe with ``rungs`` holds the settings of every rung, and under each rung's name those that differ there. Every rung
is an ordinary comparison in a folder of its name; whatever is finished is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orthotune.errors import OrthotuneError, RecipeError
from orthotune.experiments import compare, grid
from orthotune.experiments.axes import Row
from orthotune.experiments.frontier import draw_rungs
from orthotune.experiments.settings import CompareSettings
from orthotune.experiments.task import Say, Table, Task
from orthotune.files.json_file import read_json, write_json
from orthotune.files.tables import write_table
from orthotune.recipes import load
from orthotune.runs.optional_images import not_written

KEY = "rungs"
HEAD = ("rung", "method", "parameters", "largest gain", "gain of both", "forgetting", "the other's", "difference")


def load_rungs(task: Task, recipe: Path | None, overrides: Sequence[str]) -> dict[str, CompareSettings]:
    """The settings of each rung by name; one rung without a name if there are no rungs.

    A setting on the command line is one of every rung; ``rungs.NAME.KEY=VALUE`` is one of that rung alone.

    Args:
        task: the job.
        recipe: a YAML file, or None.
        overrides: ``KEY=VALUE`` settings that override the file.

    Raises:
        RecipeError: rungs that are not settings by name, a rung with an output of its own, or whatever is wrong with
            the settings of a rung; the message names the rung.

    Example:
        >>> from orthotune.experiments.text_task import SFTTask
        >>> found = load_rungs(SFTTask(), None, ["rungs={short: {steps: 10}, long: {steps: 20}}", "seeds=[1]"])
        >>> {name: (one.sft["steps"], one.seeds, str(one.output)) for name, one in found.items()}
        {'short': (10, [1], 'runs/compare-sft/short'), 'long': (20, [1], 'runs/compare-sft/long')}
    """
    given = load.read(recipe, overrides)
    rungs = given.values.pop(KEY, None)
    if rungs is None:
        return {"": grid.check_compare(task, given)}
    _check(given, rungs)
    commanded = {key for key in given.values if given.places.get(key) == load.COMMAND_LINE}
    folder = Path(str(given.values.get("output") or task.grid.model_fields["output"].default))
    found = {}
    for name, own in rungs.items():
        values = copy.deepcopy(given.values)
        values |= {key: value for key, value in own.items() if key not in commanded}
        places = given.places | {key: given.place(f"{KEY}.{name}.{key}") for key in own if key not in commanded}
        try:
            found[name] = grid.check_compare(task, load.Given({**values, "output": str(folder / name)}, places))
        except RecipeError as fault:
            raise RecipeError(f"rung {name}: {fault}") from fault
    return found


def _check(given: load.Given, rungs: Any) -> None:
    needed = "settings by name, as {small: {model: ...}, large: {model: ...}}"
    if not isinstance(rungs, Mapping) or not rungs:
        raise RecipeError(f"{given.place(KEY)}: {KEY}={rungs!r}", needed=needed)
    for name, own in rungs.items():
        place = given.place(f"{KEY}.{name}")
        if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
            raise RecipeError(f"{place}: a rung called {name!r}", needed="a name that can be that of a folder")
        if not isinstance(own, Mapping):
            raise RecipeError(f"{place}: {KEY}.{name}={own!r}", needed=needed)
        if "output" in own:
            raise RecipeError(f"{place}: output of the rung {name}", do=f"Leave it out: the folder is OUTPUT/{name}")


def run(task: Task, rungs: Mapping[str, CompareSettings], say: Say = print) -> Table:
    """Run the comparison of every rung and return the table that is printed in the end.

    With a single rung without a name this is :func:`orthotune.experiments.compare.run`. With several, their common
    folder holds ``ladder.csv`` (the rows of all comparisons with the column ``rung``), ``ladder.json`` (their
    summaries) and ``ladder.png`` beside the folders of the rungs.

    Args:
        task: the job.
        rungs: settings by name, as :func:`load_rungs` gives them.
        say: called with messages.

    Raises:
        OutputError: an output cannot be written, or a run in it was made with other settings.
        RecipeError: the settings of a rung do not fit its model; raised before the first run, with the rung's name.

    Example:
        >>> from orthotune.experiments.text_task import SFTTask
        >>> rungs = load_rungs(SFTTask(), Path("benchmarks/ladder.yaml"), [])  # doctest: +SKIP
        >>> table = run(SFTTask(), rungs)  # doctest: +SKIP
    """
    if "" in rungs:
        return task.table(compare.run(task, rungs[""], say))
    for name, settings in rungs.items():
        try:
            compare.check(task, settings)
        except OrthotuneError as fault:
            raise RecipeError(f"rung {name}: {fault}") from fault
    rows: list[Row] = []
    summaries: dict[str, Any] = {}
    for name, settings in rungs.items():
        say(f"rung {name}")
        rows += [{"rung": name, **row} for row in compare.run(task, settings, say)]
        summaries[name] = read_json(settings.output / "comparison.json")["summary"]
    folder = next(iter(rungs.values())).output.parent
    write_table(folder / "ladder.csv", rows, list(dict.fromkeys(key for row in rows for key in row)))
    write_json(folder / "ladder.json", summaries)
    if missing := not_written(lambda: draw_rungs(rows, folder / "ladder.png", task.axes), "ladder.png"):
        say(missing)
    return Table(f"{task.axes.forgetting.label} at equal gain", list(HEAD), _lines(summaries))


def _lines(summaries: Mapping[str, Any]) -> list[list[str]]:
    """One line for each rung and method: its forgetting at the largest gain that the compared method reaches too."""
    lines = []
    for name, found in summaries.items():
        for method, one in found.get("contenders", {}).items():
            at = one["at"]["1"]
            figures = (one["largest_gain"], one["common_gain"], at["own"], at["other"], at["difference"])
            cells = ["-" if value is None else f"{value:+.3f}" for value in figures]
            lines.append([name, method, f"{one['trainable_parameters']:,.0f}", *cells])
    return lines
