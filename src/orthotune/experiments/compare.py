"""The same finetuning job by several methods, variants and learning rates: what is gained against what is forgotten.

Every run is measured on the validation data, at each strength asked for. The points of a method that no other one of
it beats are then measured on the test data, once, and are its frontier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from orthotune.experiments import grid, variants
from orthotune.experiments.frontier import draw_frontier
from orthotune.experiments.strengths import Again, measure
from orthotune.experiments.summary import chosen_ways, said_of_sizes, summary
from orthotune.files.tables import write_table
from orthotune.recipes import load, sft
from orthotune.recipes.settings import METHODS, WORLD, Method, SettingError, SFTSettings
from orthotune.runs.directory import RunDirectory
from orthotune.runs.record import RunRecord

# Around the rate known to work: wide enough to see the frontier bend, all three still train.
SPREAD = (0.4, 1.0, 2.5)
Row = dict[str, Any]


class CompareSettings(grid.Grid):
    """A grid of finetuning runs.

    Example:
        >>> CompareSettings(methods=["oft"], sft={"steps": 10}).seeds
        [0]
    """

    methods: list[Method] = Field(list(METHODS))
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="Further contenders by name: their method (oft if not said), settings and learning_rates."
    )
    learning_rates: dict[Method, Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]] = Field(
        {}, description="Rates by method; default: 0.4, 1 and 2.5 times the preset's."
    )
    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0], min_length=1, description="Strengths at which what was trained is measured; 1 is as trained."
    )
    against: str = Field("lora", description="The method or variant that the others are set against.")
    test_data: str | None = Field(None, description="Held-out data of the new domain for the frontiers alone.")
    old_test_data: str | None = Field(None, description="The same of the old domain.")
    output: Path = Path("runs/compare-sft")
    sft: dict[str, Any] = Field({}, description="Settings of every run, as for `orthotune train sft`.")

    @model_validator(mode="after")
    def _complete(self) -> CompareSettings:
        if not self.methods and not self.variants:
            raise SettingError("methods", "methods=[] without variants leaves nothing to run", "Name one of either")
        variants.check(self.variants, METHODS)
        known = [*self.methods, *self.variants]
        variants.check_against(self.against, known, "against" in self.model_fields_set)
        if bool(self.test_data) != bool(self.old_test_data):
            lacking = "old_test_data" if self.test_data else "test_data"
            raise SettingError(lacking, f"no {lacking} beside the other one", "Name both, or neither")
        return self


def load_compare(recipe: Path | None, overrides: list[str]) -> CompareSettings:
    """The settings in a file and on the command line; what is no key of the grid is a setting of every run.

    Raises:
        RecipeError: as for a single run; also a key that the grid itself varies.
    """
    settings, said = grid.load_grid(CompareSettings, SFTSettings, "sft", recipe, overrides)
    # Faults that any method's runs would have are told now, not after the runs before them.
    for base, _ in _contenders(settings).values():
        load.check(SFTSettings, load.Said(base, said.places))
    return settings


def run(settings: CompareSettings, say: Callable[[str], None] = print) -> list[Row]:
    """Run what is not finished yet and return one row per run and strength, as in ``comparison.json``.

    The output holds one directory per run, ``comparison.json`` with the summary, ``comparison.csv`` and
    ``frontier.png``. Run again after an interruption, it goes on where it was.

    Raises:
        OutputError: the output cannot be written, or a run in it was made with other settings.
    """
    home = RunDirectory(settings.output)
    cells = [(name, label, SFTSettings(**values)) for name, label, values in _cells(settings)]
    runs = {name: one for name, _, one in cells}
    rows: list[Row] = []
    found = grid.records(sft.run, list(runs.items()), settings.parallel, say)
    for number, ((_, label, _), (name, record)) in enumerate(zip(cells, found, strict=True), start=1):
        rows.append(_row(name, label, record, settings.output / name))
        say(f"{number} of {len(cells)}: {name}")
        grid.write_comparison(home.path, "sft", settings, rows)
    if settings.strengths != [1.0]:
        rows = _at_strengths(settings, runs, rows, say)
    _tested(settings, runs, rows, say)
    for words in said_of_sizes(rows, settings.against):
        say(words)
    found_summary = summary(rows, settings.against)
    grid.write_comparison(home.path, "sft", settings, rows, summary=found_summary)
    write_table(home.path / "comparison.csv", rows)
    draw_frontier(rows, home.path / "frontier.png")
    return rows


def _contenders(settings: CompareSettings) -> variants.Contenders:
    own = {
        method: (grid.settings_of(method, settings.sft, SFTSettings), settings.learning_rates.get(method))
        for method in settings.methods
    }
    return own | variants.contenders(settings.variants, settings.sft, settings.learning_rates, SFTSettings)


def _cells(settings: CompareSettings) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Folder, contender and settings of each run."""
    for label, (base, rates) in _contenders(settings).items():
        for rate in rates or grid.rates_around(SFTSettings(**base).learning_rate, SPREAD):
            for seed in settings.seeds:
                name = f"{label}-lr{rate:g}-seed{seed}"
                yield name, label, {**base, "learning_rate": rate, "seed": seed, "output": settings.output / name}


def _row(name: str, label: str, record: RunRecord, home: Path) -> Row:
    return {
        "run": name,
        "method": label,
        "learning_rate": record.settings["learning_rate"],
        "strength": 1.0,
        "seed": record.settings["seed"],
        "trainable_parameters": record.trainable_parameters,
        "steps": record.steps,
        **record.model_dump(
            include={"gain", "forgetting", "drift", "new_before", "new_after", "old_before", "old_after"}
        ),
        **record.weights.model_dump(),
        "train_seconds": record.train_seconds,
        "seconds": record.seconds,
        "bytes": sum(path.stat().st_size for path in home.glob("*/*.safetensors")),
    }


def _at_strengths(
    settings: CompareSettings, runs: dict[str, SFTSettings], rows: list[Row], say: Callable[[str], None]
) -> list[Row]:
    """A row for every run and strength, in the order of ``rows``."""
    asked = [(name, Again(run=one, strengths=settings.strengths, file="strengths.json")) for name, one in runs.items()]
    every: list[Row] = []
    for row, (name, losses) in zip(rows, grid.records(measure, asked, settings.parallel, say), strict=True):
        say(f"strengths of {name}")
        for strength in settings.strengths:
            # At 1 again, too: a run may have measured itself in another dtype.
            changed = {"strength": strength, **_gained(losses[0.0], losses[strength])}
            unknown = () if strength == 1 else ("drift", "orthogonality_error", "energy_change", "angle_change")
            every.append({**row, **changed, **dict.fromkeys(unknown)})
    return every


def _tested(
    settings: CompareSettings, runs: dict[str, SFTSettings], rows: list[Row], say: Callable[[str], None]
) -> None:
    """Add what the test data say to the rows on the frontiers."""
    new, old = settings.test_data, settings.old_test_data
    own = (WORLD, f"{WORLD}/new_train", f"{WORLD}/old_validation")
    if new is None and all((one.model, one.data, one.old_data) == own for one in runs.values()):
        new, old = f"{WORLD}/new_test", f"{WORLD}/old_test"
    for row in rows:
        row |= {"chosen": False, "test_gain": None, "test_forgetting": None}
    chosen = chosen_ways(rows)
    for row in rows:
        row["chosen"] = (row["learning_rate"], row["strength"]) in chosen.get(row["method"], ())
    if new is None:
        say("No test_data and old_test_data: the frontiers are those of the data by which they were chosen.")
        return
    asked = []
    for name, one in runs.items():
        at = [row["strength"] for row in rows if row["run"] == name and row["chosen"]]
        if at:
            asked.append((name, Again(run=one, strengths=at, eval_data=new, old_data=old, file="test.json")))
    for name, losses in grid.records(measure, asked, settings.parallel, say):
        say(f"test data, {name}")
        for row in rows:
            if row["run"] == name and row["chosen"]:
                gained = _gained(losses[0.0], losses[row["strength"]])
                row |= {"test_gain": gained["gain"], "test_forgetting": gained["forgetting"]}


def _gained(base: dict[str, float], now: dict[str, float]) -> Row:
    return {
        "new_before": base.get("new"),
        "new_after": now.get("new"),
        "gain": base["new"] - now["new"] if "new" in now else None,
        "old_before": base.get("old"),
        "old_after": now.get("old"),
        "forgetting": now["old"] - base["old"] if "old" in now else None,
    }
