"""A grid of runs of one job, methods by learning rates by seeds: its settings, its cells, and running them."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from orthotune.errors import RecipeError
from orthotune.experiments.axes import Row
from orthotune.experiments.settings import VARIED, CompareSettings
from orthotune.experiments.task import Say, Task
from orthotune.files.json_file import write_json
from orthotune.files.platforms import processors
from orthotune.recipes import load
from orthotune.runs.record import versions

Record = TypeVar("Record", covariant=True)


class Job(Protocol[Record]):
    """A task's ``run`` or ``measure``."""

    def __call__(self, settings: Any, /, say: Say = ..., *, bar: bool = ...) -> Record:
        """Do the job, or read back what was done."""


class Cell(NamedTuple):
    """One run: its name, which is that of its folder, the method or variant, and its settings."""

    name: str
    method: str
    settings: Any


def load_compare(task: Task, recipe: Path | None, overrides: Sequence[str]) -> Any:
    """The settings in a file and on the command line; a key that is none of the comparison's is a setting of every run.

    Args:
        task: the job.
        recipe: a YAML file, or None.
        overrides: ``KEY=VALUE`` settings that override the file.

    Raises:
        RecipeError: as for a single run; also a key that the comparison itself varies. Faults that runs of any method
            would have are reported here, not after the runs before them.
    """
    return check_compare(task, load.read(recipe, overrides))


def check_compare(task: Task, given: load.Given) -> Any:
    """The settings of a comparison, checked; a key that is none of the comparison's is a setting of every run.

    Args:
        task: the job.
        given: the settings and their origin.

    Raises:
        RecipeError: as for :func:`load_compare`.
    """
    inside = task.grid.inside
    every = dict(given.values.pop(inside, None) or {})
    for key in [key for key in given.values if key not in task.grid.model_fields]:
        every[key] = given.values.pop(key)
    for key in every:
        if VARIED.get(key):
            raise RecipeError(f"{given.place(key)}: {key} in a comparison", do=f"Write {VARIED[key]}=[...] instead")
        if key not in task.runs.model_fields or key in VARIED:
            raise load.unknown_key(given, key, task.grid.model_fields | task.runs.model_fields)
    settings = load.check(task.grid, load.Given({**given.values, inside: every}, given.places))
    for values, _ in methods_of(task, settings).values():
        load.check(task.runs, load.Given(values, given.places))
    return settings


def methods_of(task: Task, settings: CompareSettings) -> dict[str, tuple[dict[str, Any], list[float] | None]]:
    """Each method and variant with the settings of its runs, and its learning rates where they were given.

    Args:
        task: the job.
        settings: of the comparison.
    """
    every, rates = settings.every_run, {str(method): found for method, found in settings.learning_rates.items()}
    found = {str(method): (task.settings_of(method, every), rates.get(method)) for method in settings.methods}
    for name, given in settings.variants.items():
        own = {key: value for key, value in given.items() if key not in ("method", "learning_rates")}
        method = given.get("method", "oft")
        # Its own settings come last: a variant may name one that has no meaning for other methods.
        base = task.settings_of(method, {**task.runs.without_excluded(every, own), **own})
        found[name] = ({**base, **own}, given.get("learning_rates") or rates.get(method))
    return found


def rates_of(task: Task, settings: CompareSettings) -> dict[str, list[float]]:
    """The learning rates of each method and variant.

    Args:
        task: the job.
        settings: of the comparison.
    """
    return {
        name: rates or rates_around(task.runs(**values).learning_rate, task.spread)
        for name, (values, rates) in methods_of(task, settings).items()
    }


def cells(
    task: Task, settings: CompareSettings, rates: Mapping[str, list[float]], seeds: Sequence[int], *, first: bool
) -> list[Cell]:
    """The runs of methods at learning rates with seeds.

    Args:
        task: the job.
        settings: of the comparison.
        rates: learning rates by method or variant.
        seeds: of the runs.
        first: whether they are the runs at every learning rate.
    """
    values = {name: found for name, (found, _) in methods_of(task, settings).items()}
    made = []
    for method, tried in rates.items():
        for rate in tried:
            for seed in seeds:
                name = f"{method}-lr{rate:g}-seed{seed}"
                varied = {"learning_rate": rate, "seed": seed, "output": settings.output / name}
                given = {**task.defaults(settings, values[method], seed, first=first), **values[method], **varied}
                made.append(Cell(name, method, task.runs(**given)))
    return made


def rates_around(rate: float, spread: Sequence[float]) -> list[float]:
    """``rate`` times each of ``spread``, to three digits.

    Example:
        >>> rates_around(0.002, (0.4, 1, 2.5))
        [0.0008, 0.002, 0.005]
    """
    return [float(f"{rate * factor:.3g}") for factor in spread]


def records(
    run: Job[Record], cells: Sequence[tuple[str, Any]], parallel: int, say: Callable[[str], None]
) -> Iterator[tuple[str, Record]]:
    """Name and record of each cell, in order.

    Args:
        run: the job; other processes must be able to import it.
        cells: name and settings of each.
        parallel: how many run at the same time, each in a process of its own if more than one.
        say: called with messages; several processes are silent.
    """
    if parallel == 1:
        for name, settings in cells:
            yield name, run(settings, say)
        return
    threads = max(1, processors() // parallel)
    # spawn: a forked process would share the parent's thread pools and GPU state.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parallel, mp_context=spawn, initializer=_begin, initargs=(threads,)) as pool:
        found = pool.map(partial(_silently, run), [settings for _, settings in cells])
        yield from zip((name for name, _ in cells), found, strict=True)


def write_comparison(task: Task, settings: CompareSettings, rows: list[Row], **more: Any) -> None:
    """Write ``comparison.json``: the settings, the versions of the libraries, and the rows so far.

    Args:
        task: the job.
        settings: of the comparison.
        rows: of the runs.
        more: further keys.
    """
    written = {"settings": settings.model_dump(mode="json"), "versions": versions(), "runs": rows}
    write_json(settings.output / "comparison.json", {"recipe": task.name, **written, **more, "axes": task.plane()})


def _begin(threads: int) -> None:
    """Once in each process of a pool."""
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Whoever starts a killed comparison again must not meet its runs, still at work on the same folders.
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _silently(run: Job[Record], settings: Any) -> Record:
    return run(settings, say=lambda _: None, bar=False)
