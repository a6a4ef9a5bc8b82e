"""The registry of recipes: every entry leads to a job and its settings; a further entry needs nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import typer
from pydantic import Field
from typer.testing import CliRunner

from orthotune.cli import report, train
from orthotune.recipes import preset
from orthotune.recipes.method_settings import MethodSettings
from orthotune.recipes.registry import RECIPES, Option, Recipe


@pytest.mark.parametrize("name", RECIPES)
def test_an_entry_leads_to_a_job_and_its_settings(name: str) -> None:
    recipe = RECIPES[name]
    kind = recipe.settings_class()
    assert kind.recipe == recipe.name == name
    assert callable(recipe.job().run) and callable(getattr(recipe.job(), "plan", None)) == recipe.plans
    assert {option.key for option in recipe.options} <= kind.model_fields.keys()
    assert preset.names(name)


class ToySettings(MethodSettings):
    """Settings of a recipe that exists in this test alone."""

    recipe: ClassVar[str] = "toy"
    world: ClassVar[str] = "text-world"
    rates: ClassVar[dict[str, float]] = {"oft": 1e-3}
    ball: ClassVar[float] = 1.0
    model: str = "none"
    preset: str | None = None
    colour: str = Field("red", description="A colour.")

    @classmethod
    def _from_preset(cls, said: dict[str, Any]) -> dict[str, Any]:
        return {}


def test_a_new_recipe_is_an_entry_and_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = []
    job: Any = ModuleType("orthotune.recipes.toy")
    job.run = lambda settings, say: ran.append(settings) or SimpleNamespace(scores_after={}, artifacts={})
    job.ToySettings = ToySettings
    monkeypatch.setitem(sys.modules, "orthotune.recipes.toy", job)
    monkeypatch.setattr(report, "report_on", lambda folder: folder / "report.html")
    paint = Option("colour", "--paint", "A colour.")
    recipe = Recipe("toy", "toy", "toy:ToySettings", "Paint.", ("toy",), (paint,), plans=False)
    app = typer.Typer()
    app.command("toy")(train._verb(recipe))
    app.callback()(lambda: None)
    shown = CliRunner().invoke(app, ["toy", "--help"])
    assert "--paint" in shown.output and "--dry-run" not in shown.output and "orthotune train toy" in shown.output
    done = CliRunner().invoke(app, ["toy", "seed=3", "--paint", "blue", "-o", str(tmp_path / "run")])
    assert done.exit_code == 0, (done.output, done.exception)
    assert [(one.seed, one.colour, one.output) for one in ran] == [(3, "blue", tmp_path / "run")]
