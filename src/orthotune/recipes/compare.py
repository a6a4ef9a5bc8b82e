"""The same finetuning job by several methods and learning rates: what is gained against what is forgotten."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from orthotune.errors import RecipeError
from orthotune.recipes import load, sft
from orthotune.recipes.frontier import draw_frontier, write_table
from orthotune.recipes.settings import METHODS, ONLY_FOR, Method, SFTSettings
from orthotune.training.run_directory import RunDirectory, write_json
from orthotune.training.run_record import RunRecord, versions

# Around the rate known to work: wide enough to see the frontier bend, all three still train.
SPREAD = (0.4, 1.0, 2.5)
OURS = {"method": "methods", "learning_rate": "learning_rates", "seed": "seeds", "output": "output", "resume": ""}


class CompareSettings(BaseModel):
    """A grid of finetuning runs.

    Example:
        >>> CompareSettings(methods=["oft"], sft={"steps": 10}).seeds
        [0]
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    methods: Annotated[list[Method], Field(min_length=1)] = list(METHODS)
    learning_rates: dict[Method, Annotated[list[float], Field(min_length=1)]] = Field(
        {}, description="Rates by method; default: 0.4, 1 and 2.5 times the preset's."
    )
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    parallel: Annotated[int, Field(gt=0)] = Field(1, description="Runs at the same time, each with its share of cores.")
    output: Path = Path("runs/compare-sft")
    sft: dict[str, Any] = Field({}, description="Settings of every run, as for `orthotune train sft`.")


def load_compare(recipe: Path | None, overrides: list[str]) -> CompareSettings:
    """The settings in a file and on the command line; what is no key of the grid is a setting of every run.

    Raises:
        RecipeError: as for a single run; also a key that the grid itself varies.
    """
    said = load.read(recipe, overrides)
    inner = dict(said.values.pop("sft", None) or {})
    for key in [key for key in said.values if key not in CompareSettings.model_fields]:
        inner[key] = said.values.pop(key)
    for key in inner:
        if OURS.get(key):
            raise RecipeError(f"{said.place(key)}: {key} in a comparison", do=f"Write {OURS[key]}=[...] instead")
        if key not in SFTSettings.model_fields or key in OURS:
            raise load.unknown_key(said, key, CompareSettings.model_fields | SFTSettings.model_fields)
    settings = load.check(CompareSettings, load.Said({**said.values, "sft": inner}, said.places))
    # Faults that any method's runs would have are told now, not after the runs before them.
    for method in settings.methods:
        load.check(SFTSettings, load.Said(_settings_of(method, settings.sft), said.places))
    return settings


def run(settings: CompareSettings, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Run what is not finished yet and return one row per run, as in ``comparison.json``.

    The output holds one directory per run, ``comparison.json``, ``comparison.csv`` and ``frontier.png``. Run again
    after an interruption, it goes on where it was.

    Raises:
        OutputError: the output cannot be written, or a run in it was made with other settings.
    """
    home = RunDirectory(settings.output)
    cells = [(name, SFTSettings(**values)) for name, values in _cells(settings)]
    rows: list[dict[str, Any]] = []
    for number, (name, record) in enumerate(_records(cells, settings.parallel, say), start=1):
        rows.append(_row(name, record))
        say(f"{number} of {len(cells)}: {name}")
        _write(home.path, settings, rows)
    write_table(rows, home.path / "comparison.csv")
    draw_frontier(rows, home.path / "frontier.png")
    return rows


def _cells(settings: CompareSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each run."""
    for method in settings.methods:
        base = _settings_of(method, settings.sft)
        for rate in settings.learning_rates.get(method) or _rates_around(base):
            for seed in settings.seeds:
                name = f"{method}-lr{rate:g}-seed{seed}"
                yield name, {**base, "learning_rate": rate, "seed": seed, "output": settings.output / name}


def _settings_of(method: Method, said: dict[str, Any]) -> dict[str, Any]:
    """What was said, without what has no meaning for ``method``."""
    base = {key: value for key, value in said.items() if method in ONLY_FOR.get(key, METHODS)}
    if "lora_rank" in base:  # then nothing is left to match to a block size
        base = {key: value for key, value in base.items() if key not in ("block_size", "r")}
    return {**base, "method": method, "resume": "auto"}


def _rates_around(base: dict[str, Any]) -> list[float]:
    known = SFTSettings(**base).learning_rate
    return [float(f"{known * factor:.3g}") for factor in SPREAD]


def _records(
    cells: list[tuple[str, SFTSettings]], parallel: int, say: Callable[[str], None]
) -> Iterator[tuple[str, RunRecord]]:
    if parallel == 1:
        for name, settings in cells:
            yield name, sft.run(settings, say)
        return
    threads = max(1, (os.cpu_count() or 1) // parallel)
    # spawn: a forked process would share the parent's thread pools and GPU state.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        parallel, mp_context=spawn, initializer=torch.set_num_threads, initargs=(threads,)
    ) as pool:
        records = pool.map(_silently, [settings for _, settings in cells])
        yield from zip((name for name, _ in cells), records, strict=True)


def _silently(settings: SFTSettings) -> RunRecord:
    return sft.run(settings, say=lambda _: None, bar=False)


def _row(name: str, record: RunRecord) -> dict[str, Any]:
    return {
        "run": name,
        "method": record.method,
        "learning_rate": record.settings["learning_rate"],
        "seed": record.settings["seed"],
        "trainable_parameters": record.trainable_parameters,
        **record.model_dump(
            include={"gain", "forgetting", "drift", "new_before", "new_after", "old_before", "old_after"}
        ),
        **record.weights.model_dump(),
        "train_seconds": record.train_seconds,
        "seconds": record.seconds,
    }


def _write(folder: Path, settings: CompareSettings, rows: list[dict[str, Any]]) -> None:
    record = {"recipe": "sft", "settings": settings.model_dump(mode="json"), "versions": versions(), "runs": rows}
    write_json(folder / "comparison.json", record)
