"""The settings as help lists them are those that the classes have, for every recipe of the registry."""

from __future__ import annotations

from typing import get_args

import pytest
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.recipes import preset
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.setting_fields import all_fields
from orthotune.recipes.setting_help import listing
from orthotune.recipes.setting_names import ALIASES, THEMES, meant


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_is_listed_as_the_class_has_it(name: str) -> None:
    recipe = RECIPES[name]
    kind = recipe.settings_class()
    fields = {field.name: field for field in all_fields(f"orthotune.recipes.{recipe.settings}")}
    assert fields.keys() == kind.model_fields.keys()
    shown = listing(recipe)
    for key, field in kind.model_fields.items():
        read = fields[key]
        assert read.meaning and (field.description is None or read.meaning.rstrip(".") in field.description), key
        assert (read.default is None) == field.is_required(), key
        if isinstance(field.default, str):
            assert read.default == repr(field.default), key
        choices = [one for one in get_args(field.annotation) if isinstance(one, str)]
        assert [*read.choices] == choices or not choices, key
        assert f"\n  {key}  (" in shown


@pytest.mark.parametrize("name", RECIPES)
def test_help_names_the_presets_that_set_a_key(name: str) -> None:
    recipe, known = RECIPES[name], preset.names(RECIPES[name].settings_class().recipe)
    by_key: dict[str, list[str]] = {}
    for one in known:
        for key in preset.settings_of(one, name):
            by_key.setdefault(key, []).append(one)
    for key, names in by_key.items():
        entry = listing(recipe, [key]).split(f"\n  {key}  (")[1].split("Set by presets:")[1].split(".")[0]
        assert {one.strip() for one in entry.replace("-\n", "-").split(",")} == set(names), key


def test_every_alias_and_theme_is_of_a_setting() -> None:
    known = {field.name for recipe in RECIPES.values() for field in all_fields(f"orthotune.recipes.{recipe.settings}")}
    assert not {name for names in ALIASES.values() for name in names} - known
    assert not {name for names in THEMES.values() for name in names} - known


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("key", "wanted"),
    [("lr", ["learning_rate"]), ("epochs", ["epochs", "steps"]), ("num_train_epochs", ["epochs", "steps"]),
     ("optimizer", ["optim", "optimizer"]), ("report_to", ["trackers"]),
     ("per_device_train_batch_size", ["batch_size"]),
     ("lora_r", ["lora_rank"]), ("leraning_rate", ["learning_rate"]), ("output_dir", ["output"]),
     ("gradient-accumulation-steps", ["gradient_accumulation"])],
)  # fmt: skip
def test_the_names_of_other_trainers_are_understood(name: str, key: str, wanted: list[str]) -> None:
    known = RECIPES[name].settings_class().model_fields
    assert meant(key, known) in wanted


def test_the_command_line_lists_and_filters() -> None:
    shown = CliRunner().invoke(app, ["train", "sft", "lr", "--keys"]).output
    assert shown.startswith("Training\n  learning_rate  (float > 0;") and "steps" not in shown
    assert "No setting of sft is called zzz" in CliRunner().invoke(app, ["train", "sft", "zzz", "--keys"]).output
    shown = CliRunner().invoke(app, ["train", "sft", "--help"]).output
    assert all(f"{theme}:" in shown for theme in THEMES) and "--keys" in shown
