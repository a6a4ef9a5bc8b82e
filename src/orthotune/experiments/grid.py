"""A grid of runs of one job, methods by learning rates by seeds: its settings, and running what is not finished."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field

from orthotune.errors import RecipeError
from orthotune.files.json_file import write_json
from orthotune.files.platforms import processors
from orthotune.recipes import load
from orthotune.recipes.method_settings import METHODS, MethodSettings
from orthotune.runs.record import versions

#: What a grid varies or does for every run, and what is written instead of it.
OURS = {"method": "methods", "learning_rate": "learning_rates", "seed": "seeds", "output": "output", "resume": ""}
Record = TypeVar("Record", covariant=True)


class Grid(BaseModel):
    """What every comparison is told; a comparison adds its methods, its rates and the settings of its runs."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    parallel: Annotated[int, Field(gt=0)] = Field(1, description="Runs at the same time, each with its share of cores.")
    output: Path = Path("runs")


class Job(Protocol[Record]):
    """A recipe's ``run``."""

    def __call__(self, settings: Any, say: Callable[[str], None] = ..., *, bar: bool = ...) -> Record:
        """Run, or read back what was run."""


GridKind = TypeVar("GridKind", bound=Grid)


def load_grid(
    kind: type[GridKind], runs: type[MethodSettings], inside: str, recipe: Path | None, overrides: Sequence[str]
) -> tuple[GridKind, load.Said]:
    """The settings in a file and on the command line; what is no key of the grid is a setting of every run.

    Args:
        kind: the settings of the grid.
        runs: the settings of one run.
        inside: the key of ``kind`` under which the settings of every run are kept.
        recipe: a YAML file, or None.
        overrides: ``KEY=VALUE`` settings that override the file.

    Returns:
        the settings, and where each was said.

    Raises:
        RecipeError: as for a single run; also a key that the grid itself varies.
    """
    said = load.read(recipe, overrides)
    inner = dict(said.values.pop(inside, None) or {})
    for key in [key for key in said.values if key not in kind.model_fields]:
        inner[key] = said.values.pop(key)
    for key in inner:
        if OURS.get(key):
            raise RecipeError(f"{said.place(key)}: {key} in a comparison", do=f"Write {OURS[key]}=[...] instead")
        if key not in runs.model_fields or key in OURS:
            raise load.unknown_key(said, key, kind.model_fields | runs.model_fields)
    return load.check(kind, load.Said({**said.values, inside: inner}, said.places)), said


def settings_of(method: str, said: Mapping[str, Any], runs: type[MethodSettings]) -> dict[str, Any]:
    """What was said of every run, without what has no meaning for ``method``."""
    base = {key: value for key, value in said.items() if method in runs.only_for.get(key, METHODS)}
    if "lora_rank" in base:  # then nothing is left to match to a block size
        base = {key: value for key, value in base.items() if key not in ("block_size", "r")}
    return {**base, "method": method, "resume": "auto"}


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
    """Name and record of each cell (name, settings), in order; ``parallel`` of them at the same time.

    ``run`` is a function of a module, so that other processes can import it.
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


def write_comparison(folder: Path, recipe: str, settings: Grid, rows: list[dict[str, Any]], **more: Any) -> None:
    """Write ``comparison.json``: what was asked for, with which versions, and the rows so far."""
    record = {"recipe": recipe, "settings": settings.model_dump(mode="json"), "versions": versions(), "runs": rows}
    write_json(folder / "comparison.json", record | more)


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
