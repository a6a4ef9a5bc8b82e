"""The same finetuning job by several methods and learning rates: what is gained against what is forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from orthotune.recipes import grid, load, sft
from orthotune.recipes.frontier import draw_frontier, write_table
from orthotune.recipes.settings import METHODS, Method, SFTSettings
from orthotune.training.run_directory import RunDirectory
from orthotune.training.run_record import RunRecord

# Around the rate known to work: wide enough to see the frontier bend, all three still train.
SPREAD = (0.4, 1.0, 2.5)


class CompareSettings(grid.Grid):
    """A grid of finetuning runs.

    Example:
        >>> CompareSettings(methods=["oft"], sft={"steps": 10}).seeds
        [0]
    """

    methods: list[Method] = Field(list(METHODS), min_length=1)
    learning_rates: dict[Method, Annotated[list[float], Field(min_length=1)]] = Field(
        {}, description="Rates by method; default: 0.4, 1 and 2.5 times the preset's."
    )
    output: Path = Path("runs/compare-sft")
    sft: dict[str, Any] = Field({}, description="Settings of every run, as for `orthotune train sft`.")


def load_compare(recipe: Path | None, overrides: list[str]) -> CompareSettings:
    """The settings in a file and on the command line; what is no key of the grid is a setting of every run.

    Raises:
        RecipeError: as for a single run; also a key that the grid itself varies.
    """
    settings, said = grid.load_grid(CompareSettings, SFTSettings, "sft", recipe, overrides)
    # Faults that any method's runs would have are told now, not after the runs before them.
    for method in settings.methods:
        load.check(SFTSettings, load.Said(grid.settings_of(method, settings.sft, SFTSettings), said.places))
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
    for number, (name, record) in enumerate(grid.records(sft.run, cells, settings.parallel, say), start=1):
        rows.append(_row(name, record))
        say(f"{number} of {len(cells)}: {name}")
        grid.write_comparison(home.path, "sft", settings, rows)
    write_table(rows, home.path / "comparison.csv")
    draw_frontier(rows, home.path / "frontier.png")
    return rows


def _cells(settings: CompareSettings) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and settings of each run."""
    for method in settings.methods:
        base = grid.settings_of(method, settings.sft, SFTSettings)
        rates = settings.learning_rates.get(method)
        for rate in rates or grid.rates_around(SFTSettings(**base).learning_rate, SPREAD):
            for seed in settings.seeds:
                name = f"{method}-lr{rate:g}-seed{seed}"
                yield name, {**base, "learning_rate": rate, "seed": seed, "output": settings.output / name}


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
