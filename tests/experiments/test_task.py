"""A further comparison needs a task and an entry of the registry: the one of docs/contributing/add-a-comparison.md."""

from __future__ import annotations

import csv
import json
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from orthotune.cli import compare as verbs
from orthotune.errors import RecipeError
from orthotune.experiments import compare, grid
from orthotune.experiments.axes import Axes, Axis
from orthotune.experiments.registry import COMPARISONS, Comparison
from orthotune.experiments.summary import chosen_ways, summary
from orthotune.experiments.task import Task
from orthotune.files.json_file import read_json, write_json
from orthotune.recipes.method_settings import MethodSettings
from tests.support.page_blocks import DOCS, blocks

PAGE = DOCS / "contributing" / "add-a-comparison.md"


class ToySettings(MethodSettings):
    """Settings of a recipe that exists in this test alone."""

    recipe: ClassVar[str] = "toy"
    world: ClassVar[str] = "no-world"
    rates: ClassVar[dict[str, float]] = {"oft": 0.1, "lora": 0.1}
    ball: ClassVar[float] = 1.0
    preset: str | None = "none"
    steps: int = 3

    @classmethod
    def _from_preset(cls, said: dict[str, Any]) -> dict[str, Any]:
        return {}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A recipe without training; ``toy.ran`` and ``toy.asked`` note what was run and measured."""
    made: Any = ModuleType("orthotune.recipes.toy")
    made.ToySettings, made.ran, made.asked = ToySettings, [], []

    def run(settings: ToySettings, say: Any) -> dict[str, Any]:
        record = settings.output / "run.json"
        if not record.is_file():
            made.ran.append(settings.output.name)
            settings.output.mkdir(parents=True)
            write_json(record, {"steps": settings.steps, "rate": settings.learning_rate, "method": settings.method})
        return read_json(record)

    def answers(folder: Path, split: str, strength: float) -> dict[str, float]:
        made.asked.append((folder.name, split, strength))
        record = read_json(folder / "run.json")
        lost = strength * record["rate"] ** 2 * (1 if record["method"] == "oft" else 2)
        return {"learned": strength * record["rate"] + (split == "test"), "kept": -lost}

    made.run, made.answers = run, answers
    monkeypatch.setitem(sys.modules, "orthotune.recipes.toy", made)
    return made


@pytest.fixture
def task(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Task:
    """The task of the page."""
    module = ModuleType("orthotune.experiments.toy_task")
    exec(compile(blocks(PAGE, "python")[0].text, PAGE.name, "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return Comparison("toy", "toy_task:ToyTask", "Answer.", ("toy",)).task()


def test_every_entry_leads_to_its_task() -> None:
    for name, entry in COMPARISONS.items():
        found = entry.task()
        assert found.name == entry.name == name and found.runs.recipe == name
        assert found.grid.inside in found.grid.model_fields and f"{name} " in f"{entry.examples[0]} "
        assert found.grid().output == Path(f"runs/compare-{name}")
        # Runs beside each other are made and measured in other processes.
        assert pickle.loads(pickle.dumps(found.measure)).__func__ is type(found).measure


@pytest.mark.parametrize(("name", "file"), [("sft", "frontiers-text.yaml"), ("subject", "frontiers-subject.yaml")])
def test_grids_in_files_are_read(name: str, file: str) -> None:
    task = COMPARISONS[name].task()
    settings = compare.load_compare(task, DOCS.parent / "benchmarks" / file, ["steps=7"])
    rates = grid.rates_of(task, settings)
    assert {"oft", "lora", "full", "oft-magnitude"} <= rates.keys() and settings.seeds == [0, 1, 2]
    made = grid.cells(task, settings, rates, settings.first_seeds, first=True)
    assert all(cell.settings.steps == 7 for cell in made)
    assert {cell.settings.rotation.get("magnitude") for cell in made if cell.method == "oft-magnitude"} == {True}
    # What a comparison wrote down can be read as its settings.
    again = task.grid(**json.loads(settings.model_dump_json()))
    assert again == settings


@pytest.mark.parametrize("file", ["family-frontier.yaml", "family-frontier-smollm2.yaml"])
def test_the_grids_of_transforms_are_read_and_of_equal_size(file: str) -> None:
    task = COMPARISONS["sft"].task()
    settings = compare.load_compare(task, DOCS.parent / "benchmarks" / file, ["model=text-world"])
    rates = grid.rates_of(task, settings)
    made = grid.cells(task, settings, rates, settings.first_seeds, first=True)
    assert {cell.settings.transform for cell in made} >= {"reflections", "butterfly", "subspace", "givens"}
    assert all(len(found) >= 2 for found in rates.values())  # one rate of a method says nothing
    wide, deep = (192, 512) if "smollm2" not in file else (576, 1536)
    width = 6 * wide + deep  # inputs of the seven matrices of a block
    blocks = width * 31 / 2
    for cell in made:
        run = cell.settings
        size = {
            "reflections": lambda r=run.r: r * width, "butterfly": lambda b=run.block_size: width * (b - 1),
            "subspace": lambda r=run.r: 7 * r * (r - 1) / 2, "psoft": lambda r=run.r: 7 * r * (r + 3) / 2,
        }.get(run.transform)  # fmt: skip
        assert size is None or abs(size() / blocks - 1) < 0.04


@pytest.mark.parametrize("name", ["subject", "control"])
def test_the_grids_of_layouts_of_convolutions_rotate_convolutions_in_each(name: str) -> None:
    task = COMPARISONS[name].task()
    settings = compare.load_compare(task, DOCS.parent / "benchmarks" / f"convolutions-{name}.yaml", ["steps=7"])
    rates = grid.rates_of(task, settings)
    made = grid.cells(task, settings, rates, settings.first_seeds, first=True)
    layouts = {(cell.method, cell.settings.rotation.get("conv"), cell.settings.rotation.get("side")) for cell in made}
    assert layouts == {
        ("conv-kernel", "kernel", None), ("conv-channels", "channels", None), ("side-out", None, "out"),
    }  # fmt: skip
    assert {cell.settings.target_modules for cell in made} == {"attention+convolutions"} and len(made) == 27


def test_the_members_on_the_page_exist_and_those_that_must_be_stated_are_there() -> None:
    table = PAGE.read_text(encoding="utf-8").split("|---|---|\n")[1]
    named = {name.strip(" `") for line in table.splitlines() if line.strip().startswith("|")
             for name in line.split("|")[1].split(",")}  # fmt: skip
    stated = set(Task.__abstractmethods__) | {name for name in Task.__annotations__ if not hasattr(Task, name)}
    assert stated <= named and all(name in dir(Task) or name in Task.__annotations__ for name in named)


def test_the_task_of_the_page_is_run_by_its_verb(toy: Any, task: Task, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command("toy")(verbs._verb(Comparison("toy", "toy_task:ToyTask", "Answer.", ("toy methods=[oft]",))))
    app.callback()(lambda: None)
    assert "orthotune compare toy methods=[oft]" in CliRunner().invoke(app, ["toy", "--help"]).output
    words = ["toy", "methods=[oft, lora]", "learning_rates={lora: [0.2]}", "strengths=[1.0, 0.5]", "steps=7"]
    done = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "grid")])
    assert done.exit_code == 0, (done.output, done.exception)
    # Three rates around the recipe's own, and the one that was given.
    assert toy.ran == ["oft-lr0.04-seed0", "oft-lr0.1-seed0", "oft-lr0.25-seed0", "lora-lr0.2-seed0"]
    record = json.loads((tmp_path / "grid" / "comparison.json").read_text())
    assert record["axes"] == {"learned": "learned", "kept": "kept", "better": "upper right"}
    rows = record["runs"]
    assert [row["strength"] for row in rows] == [1.0, 0.5] * 4 and all(row["steps"] == 7 for row in rows)
    # 0.125 with 0.03125 lost, where 0.1 was learned with 0.01: every point of oft is on its frontier.
    assert all(row["chosen"] for row in rows)
    assert all(row["test_learned"] == pytest.approx(row["learned"] + 1) for row in rows)
    with (tmp_path / "grid" / "comparison.csv").open() as file:
        assert [line["run"] for line in csv.DictReader(file)] == [row["run"] for row in rows]
    assert {path.name for path in (tmp_path / "grid").iterdir() if path.is_file() and path.suffix} == {
        "comparison.json", "comparison.csv", "frontier.png", "report.html",
    }  # fmt: skip
    on_test = [asked for asked in toy.asked if asked[1] == "test"]
    assert len(on_test) == len(set(on_test)) == 8
    # Finished runs are kept.
    toy.ran.clear()
    assert CliRunner().invoke(app, [*words, "-o", str(tmp_path / "grid")]).exit_code == 0
    assert not toy.ran


def test_a_task_that_ranks_its_runs_chooses_a_rate_first(toy: Any, task: Task, tmp_path: Path) -> None:
    class Ranked(type(task)):  # type: ignore[misc]
        ranking = ("learned",)

        def tested(self, run: Any, say: Any) -> dict[str, Any]:
            return {"test_learned": toy.answers(run.output, "test", 1.0)["learned"]}

        def base(self, folder: Path, say: Any) -> dict[str, Any]:
            return {"run": "none", "method": "none", "chosen": True}

    settings = task.grid(methods=["oft"], output=tmp_path, strengths=[1.0, 0.5])
    rows = compare.run(Ranked(), settings, say=lambda _: None)
    assert [(row["run"], row["chosen"], "test_learned" in row) for row in rows] == [
        ("oft-lr0.04-seed0", False, False), ("oft-lr0.1-seed0", False, False), ("oft-lr0.25-seed0", True, True),
        ("none", True, False),
    ]  # fmt: skip
    with (tmp_path / "points.csv").open() as file:
        assert [(p["run"], p["strength"], p["chosen"]) for p in csv.DictReader(file)] == [
            ("oft-lr0.25-seed0", "1.0", "True"), ("oft-lr0.25-seed0", "0.5", "True"),
        ]  # fmt: skip
    assert json.loads((tmp_path / "equal-gain.json").read_text())["data"] == "test"


def test_faults_are_reported_before_the_first_run(toy: Any, task: Task) -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'stepz'. Did you mean 'steps'\?"):
        compare.load_compare(task, None, ["stepz=3"])
    with pytest.raises(RecipeError, match="steps='x'"):
        compare.load_compare(task, None, ["steps=x"])
    assert not toy.ran


def test_an_axis_of_which_less_is_better_is_turned_round() -> None:
    axes = Axes(Axis("loss", larger_is_better=False), Axis("right"))
    rows = [
        {"method": "oft", "learning_rate": rate, "seed": 0, "loss": loss, "right": right}
        for rate, loss, right in ((0.1, -0.2, -0.1), (0.2, -0.4, -0.3), (0.3, -0.3, -0.4))
    ]
    assert axes.better == "lower right"
    assert chosen_ways(rows, axes) == {"oft": {(0.1, 1.0), (0.2, 1.0)}}
    assert summary(rows, "oft", axes)["contenders"]["oft"]["largest_gain"] == pytest.approx(0.4)
