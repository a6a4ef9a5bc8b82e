"""A recipe as a file and as a form, which say the same."""

from __future__ import annotations

import pytest
import yaml

from orthotune.errors import RecipeError
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.setting_fields import all_fields
from orthotune.studio.forms import HIDDEN, controls, new_text
from orthotune.studio.recipe_text import edited, typed, values_of, with_value, written

TEXT = """# mine
steps: 20  # few
data:
- path: a.jsonl
  weight: 0.7
rotation: {side: in, magnitude: true}
prompt: |
  two
  lines
seed: 1
"""


@pytest.mark.parametrize("key", ["steps", "data", "rotation", "prompt", "seed", "new"])
@pytest.mark.parametrize(
    "value", [7, "a: b", ["x", "y"], {"side": "out"}, "two\nlines", None, "", True, "3e-4", "# no"]
)
def test_one_setting_changes_and_nothing_else(key: str, value: object) -> None:
    before = values_of(TEXT)
    changed = with_value(TEXT, key, value)
    wanted = {name: inner for name, inner in (before | {key: value}).items() if inner is not None}
    assert values_of(changed) == wanted
    assert changed.startswith("# mine\n")
    assert with_value(changed, key, value) == changed


def test_an_object_on_one_line_becomes_lines() -> None:
    assert values_of(with_value("{steps: 20, seed: 1}", "seed", 2)) == {"steps": 20, "seed": 2}


def test_a_text_without_a_last_newline_gets_one() -> None:
    assert with_value("steps: 20", "seed", 2) == "steps: 20\nseed: 2\n"


@pytest.mark.parametrize(
    "value", [1, 0.5, "a dog", "yes", "1", "a, b", [], {}, ["a"], "ünïcode", " lead", "null", False]
)
def test_a_field_is_read_as_it_is_written(value: object) -> None:
    assert typed(written(value)) == value


@pytest.mark.parametrize(("text", "line"), [("steps: [", 1), ("a: 1\nb: {", 2), ("- a\n", 0)])
def test_what_is_no_recipe_is_an_error_with_its_line(text: str, line: int) -> None:
    with pytest.raises(RecipeError, match=f"line {line}|line {line + 1}" if line else "lines of"):
        values_of(text)
    with pytest.raises(RecipeError):
        with_value(text, "steps", 1)


@pytest.mark.parametrize("recipe", ["sft", "reward", "subject", "t2i"])
def test_a_form_has_every_setting_once(recipe: str) -> None:
    shown = [control.key for members in controls(recipe, None).values() for control in members]
    fields = [field.name for field in all_fields(f"orthotune.recipes.{RECIPES[recipe].settings}")]
    assert sorted(shown) == sorted(set(fields) - set(HIDDEN))
    assert values_of(new_text(recipe)) == {}


def test_hints_are_the_values_of_the_preset() -> None:
    by_key = {one.key: one for members in controls("subject", "sdxl").values() for one in members}
    from orthotune.recipes import preset

    key, value = next((key, value) for key, value in preset.settings_of("sdxl", "subject").items() if key in by_key)
    assert by_key[key].hint == f"{written(value)} (preset sdxl)"
    assert {choice for _, choice in by_key["method"].choices} == {"", "oft", "coft", "lora", "full"}
    assert yaml.safe_load(new_text("t2i")) is None


def test_edits_that_overtake_each_other_are_all_kept() -> None:
    """A slow server answers the first field after the browser has sent the second one, with the text before both."""
    shown, history = "# mine\n", ()
    first = edited(shown, history, "steps", "20")
    assert first is not None
    second = edited(shown, first[1], "prompt", "[a dog")
    assert second is not None and values_of(second[0]) == {"steps": 20, "prompt": "[a dog"}
    # A text that a person wrote since is no older version of one that fields have made.
    third = edited("seed: 3\n", second[1], "steps", "5")
    assert third is not None and values_of(third[0]) == {"seed": 3, "steps": 5}
    assert edited(third[0], third[1], "steps", "5") is None and edited("a: [", (), "steps", "5") is None
    cleared = edited(third[0], third[1], "seed", " ")
    assert cleared is not None and values_of(cleared[0]) == {"steps": 5}
