"""Fitting magnitudes beside a finished rotation of a language model; images are in tests/image."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orthotune.errors import RecipeError
from orthotune.files.json_file import read_json
from orthotune.recipes import magnitude, sft
from orthotune.recipes.magnitude import load_magnitude
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.record import RunRecord


@pytest.fixture(scope="module")
def rotated(model_path: Path, text_path: Path, old_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs") / "first"
    job = {"model": str(model_path), "data": str(text_path), "old_data": str(old_path), "output": home}
    sft.run(
        SFTSettings(**job, steps=4, max_length=32, block_size=16, batch_size=2, learning_rate=1e-2),
        say=lambda _: None, bar=False,
    )  # fmt: skip
    return home


def fitted(words: list[str]) -> tuple[dict[str, torch.Tensor], list[str]]:
    settings, said = load_magnitude(None, words), []
    magnitude.run(settings, said.append, bar=False)
    return load_file(settings.output / "adapter" / "adapter_model.safetensors"), said


def test_only_magnitudes_are_fitted_and_both_are_saved(rotated: Path, tmp_path: Path) -> None:
    found, said = fitted([f"adapter={rotated}", f"output={tmp_path / 'fit'}"])
    before = load_file(rotated / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in before.items())
    scales = {name: value for name, value in found.items() if name not in before}
    assert len(scales) == len(before) == 14 and all(name.endswith("oft_magnitude") for name in scales)
    assert all((value != 1).any() for value in scales.values())
    # Half of the 4 steps of the run before, and its data.
    assert "2 steps" in said[0] and "14 layers" in said[0]


def test_the_fit_starts_where_the_rotation_ended(rotated: Path, tmp_path: Path) -> None:
    words = [f"adapter={rotated / 'adapter'}", f"output={tmp_path / 'fit'}", "steps=3"]
    record = magnitude.run(load_magnitude(None, words), say=lambda _: None, bar=False)
    ended = RunRecord(**read_json(rotated / "run.json"))
    # One more product for each output: float32 rounding of a mean over some hundred tokens.
    assert record.new_before == pytest.approx(ended.new_after, rel=1e-5)
    assert record.old_before == pytest.approx(ended.old_after, rel=1e-5)
    assert record.steps == 3 and record.trainable_parameters == sum(
        value.numel()
        for name, value in load_file(tmp_path / "fit" / "adapter" / "adapter_model.safetensors").items()
        if "magnitude" in name
    )


def test_a_fit_that_was_cut_off_goes_on_the_same(rotated: Path, tmp_path: Path) -> None:
    words = [f"adapter={rotated}", "steps=4", "save_every=2"]
    whole, _ = fitted([*words, f"output={tmp_path / 'whole'}"])
    fitted([*words, f"output={tmp_path / 'cut'}"])
    for name in ("run.json", "adapter", "checkpoints/checkpoint-4"):
        path = tmp_path / "cut" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again, _ = fitted([*words, f"output={tmp_path / 'cut'}", "resume=auto"])
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_what_cannot_be_scaled_is_told(rotated: Path, model_path: Path, tmp_path: Path) -> None:
    for words, message in (
        ([], "Write adapter=FOLDER"),
        (["adapter=nowhere"], "no such folder"),
        ([f"adapter={tmp_path}"], "no adapter there"),
        ([f"adapter={rotated}", "recipe=sfd"], "one of sft"),
        ([f"adapter={rotated}", "lerning_rate=1"], "Did you mean 'learning_rate'"),
    ):
        with pytest.raises(RecipeError, match=message):
            load_magnitude(None, words)
    alone = tmp_path / "alone"
    shutil.copytree(rotated / "adapter", alone)
    with pytest.raises(RecipeError, match="is not in a run directory.*recipe=subject"):
        load_magnitude(None, [f"adapter={alone}"])
    lora = tmp_path / "lora"
    shutil.copytree(rotated, lora)
    (lora / "run.json").write_text((lora / "run.json").read_text().replace('"method": "oft"', '"method": "lora"'))
    with pytest.raises(RecipeError, match="a run with method=lora"):
        load_magnitude(None, [f"adapter={lora}"])
