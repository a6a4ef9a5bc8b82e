from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.errors import RecipeError
from orthotune.recipes.load import load_settings
from orthotune.recipes.settings import SFTSettings


def _recipe(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_command_line_goes_before_the_file(tmp_path: Path) -> None:
    recipe = _recipe(
        tmp_path, "method: lora\nsteps: 5\nlearning_rate: 1e-4\nrotation: {}\n".replace("rotation: {}\n", "")
    )
    settings = load_settings(SFTSettings, recipe, ["steps=9", "target_modules=[q_proj, v_proj]"])
    assert (settings.method, settings.steps, settings.learning_rate) == ("lora", 9, 1e-4)
    assert settings.target_modules == ["q_proj", "v_proj"]


def test_dotted_keys_reach_inside(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "rotation: {side: out, scaled: true}\n")
    assert load_settings(SFTSettings, recipe, ["rotation.side=in"]).rotation == {"side": "in", "scaled": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# mine\nlerning_rate: 3\n", "mine.yaml, line 2: unknown key 'lerning_rate'. Did you mean 'learning_rate'?"),
        ("method: oft\n\nsteps: many\n", "mine.yaml, line 3: steps='many'. Needed: a valid integer"),
        ("method: ofd\n", "line 1: method='ofd'. Needed: 'oft', 'coft', 'lora' or 'full'"),
        ("method: lora\neps: 0.1\n", "mine.yaml, line 2: eps has no meaning for method=lora"),
        ("steps: 1\nsteps: 2\n", "mine.yaml, line 2: 'steps' again. Found: first at"),
        ("steps: [1\n", "mine.yaml, line 2: not YAML"),
        ("- steps\n", "Found: list. Needed: lines of"),
        ("preset: lama\n", "preset 'lama'. Found: no such preset. Needed: .* Did you mean 'llama'"),
        ("preset: llama\ndata: x.jsonl\n", "model is missing. Needed: Path or hub name"),
    ],
)
def test_faults_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words.replace("?", r"\?")):
        load_settings(SFTSettings, _recipe(tmp_path, text))


def test_faults_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="command line: steps='x'"):
        load_settings(SFTSettings, None, ["steps=x"])
    with pytest.raises(RecipeError, match="argument 'steps'. Needed: a recipe file that exists, or KEY=VALUE"):
        load_settings(SFTSettings, None, ["steps"])
    with pytest.raises(RecipeError, match="no such file"):
        load_settings(SFTSettings, tmp_path / "none.yaml")


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "stpes: 5\nlearning_rate: fast\nmodle: gpt2\n")
    with pytest.raises(RecipeError) as raised:
        load_settings(SFTSettings, recipe, ["batch_size=0", "lora_rank=x"])
    first, *faults = str(raised.value).splitlines()
    assert first == "5 settings cannot be used:"
    for text in (
        "line 1: unknown key 'stpes'. Did you mean 'steps'?",
        "line 3: unknown key 'modle'. Did you mean 'model'?",
        "line 2: learning_rate='fast'. Needed: a valid number",
        "command line: batch_size=0. Needed: ",
        "command line: lora_rank='x'. Needed: ",
    ):
        assert sum(text in fault for fault in faults) == 1, (text, faults)


def test_all_contradictions_are_named_at_once(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path, "method: lora\neps: 0.1\nsteps: 3\nepochs: 2\nmagnitude_rate: 2\n")
    with pytest.raises(RecipeError) as raised:
        load_settings(SFTSettings, recipe)
    first, *faults = str(raised.value).splitlines()
    assert first == "3 settings cannot be used:"
    for text in ("line 2: eps has no", "line 4: steps and epochs are mutually", "line 5: magnitude_rate has no"):
        assert sum(text in fault for fault in faults) == 1, (text, faults)


def test_what_is_missing_is_not_guessed_beside_an_unknown_key(tmp_path: Path) -> None:
    """``modle`` is why the model is missing: one fault."""
    with pytest.raises(RecipeError, match=r"^[^\n]*unknown key 'modle'[^\n]*$"):
        load_settings(SFTSettings, _recipe(tmp_path, "preset: llama\ndata: x.jsonl\nmodle: gpt2\n"))
