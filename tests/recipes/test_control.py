"""The control recipe: pairs in, a run directory out that the control pipeline loads; wrong pairs are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor

from orthotune.errors import ConfigError, DataError
from orthotune.image.control.pipeline import ControlPipeline
from orthotune.recipes import control
from orthotune.recipes.control import ControlSettings
from orthotune.recipes.control_scores import SampleScores
from orthotune.recipes.image_run import ADAPTER, MODEL
from orthotune.worlds.image_folders import write_control
from orthotune.worlds.image_scores import base_family
from tests.support.tiny_pipelines import FAMILIES, save_tiny

#: Another order of the same float32 sums, on latents near 1.
NEAR = 1e-4


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_control(tmp_path_factory.mktemp("data") / "pairs", "segm", count=6)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    known: dict[str, Path] = {}

    def base(kind: str) -> Path:
        if kind not in known:
            known[kind] = save_tiny(kind, tmp_path_factory.mktemp(kind) / "base")
        return known[kind]

    return base


def _settings(model: Path, data: Path, output: Path, **said: Any) -> ControlSettings:
    # Uneven block and batch sizes; a large rate, so that few steps change something.
    values: dict[str, Any] = {
        "model": str(model), "data": str(data), "output": output, "signal": "segm", "steps": 3, "batch_size": 2,
        "learning_rate": 0.02, "hint_learning_rate": 0.05, "sample_steps": 2, "sample_seeds": [3], "warmup": 0,
        "sample_prompts": ["a red one"], "sample_every": 9, "resolution": 16,  # FLUX would take 256
    }  # fmt: skip
    values |= {"block_size": 2} if said.get("method") != "full" else {}
    return ControlSettings(**values | said)


def _run(settings: ControlSettings) -> Any:
    return control.run(settings, say=lambda _: None, bar=False)


def _drawn(pipeline: ControlPipeline) -> Tensor:
    square = torch.zeros(3, 16, 16)
    square[:, 4:12, 5:9] = 1
    found: Tensor = pipeline("a red three", square, seed=1, num_inference_steps=2, output_type="latent").images
    return found


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_run_of_every_family_is_loaded_and_merged(kind: str, bases: Any, pairs: Path, tmp_path: Path) -> None:
    base, output = bases(kind), tmp_path / "run"
    record = _run(_settings(base, pairs, output))
    assert record.recipe == "control"
    pipeline = ControlPipeline.from_pretrained(base, output / ADAPTER)
    assert pipeline.signal == "segm"
    pictures = _drawn(pipeline)
    assert (_drawn(ControlPipeline.from_pretrained(base, hint_encoder=output / ADAPTER)) - pictures).abs().max() > NEAR
    torch.testing.assert_close(_drawn(pipeline.merge()), pictures, atol=NEAR, rtol=0)


@pytest.mark.parametrize(
    "said", [{"method": "lora"}, {"method": "coft"}, {"method": "full"}, {"train_text_encoder": True}], ids=str
)
def test_every_method_leaves_what_the_pipeline_loads(
    said: dict[str, Any], bases: Any, pairs: Path, tmp_path: Path
) -> None:
    base, output = bases("sd15"), tmp_path / "run"
    _run(_settings(base, pairs, output, **said))
    loaded = (output / MODEL,) if said.get("method") == "full" else (base, output / ADAPTER)
    pipeline = ControlPipeline.from_pretrained(*loaded)
    pictures = _drawn(pipeline)
    torch.testing.assert_close(_drawn(pipeline.merge()), pictures, atol=NEAR, rtol=0)


def test_samples_show_the_control_picture_on_the_left(bases: Any, pairs: Path, tmp_path: Path) -> None:
    _run(_settings(bases("sd15"), pairs, tmp_path / "run"))
    said = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert [(one["step"], one["prompt"], one["seed"]) for one in said] == [(0, "a red one", 3), (3, "a red one", 3)]
    picture = np.asarray(Image.open(tmp_path / "run" / said[0]["file"]))
    assert picture.shape == (16, 32, 3)
    first = sorted((pairs / "conditions").iterdir())[0]
    with Image.open(first) as mask:
        assert np.array_equal(picture[:, :16], np.asarray(mask.resize((16, 16), Image.Resampling.NEAREST)))


def test_a_stopped_run_ends_with_the_same_numbers(bases: Any, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    settings = _settings(bases("sd15"), pairs, output, steps=4, save_every=2)
    _run(settings)
    whole = {path.name: load_file(path) for path in (output / ADAPTER).glob("*.safetensors")}
    assert "hint_encoder.safetensors" in whole
    for gone in (output / ADAPTER, output / "checkpoints" / "checkpoint-4"):
        shutil.rmtree(gone)
    (output / "run.json").unlink()
    _run(settings.model_copy(update={"resume": "auto"}))
    for name, tensors in whole.items():
        again = load_file(output / ADAPTER / name)
        assert all(torch.equal(again[key], value) for key, value in tensors.items())


def test_a_plan_writes_nothing(bases: Any, pairs: Path, tmp_path: Path) -> None:
    lines = control.plan(_settings(bases("sd15"), pairs, tmp_path / "run"))
    assert any("signal" in line and "maps of classes" in line for line in lines)
    assert any("images      6" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_edges_are_made_of_the_pictures_and_scored_as_the_base(tmp_path: Path) -> None:
    scores = SampleScores("sketch", count=2, steps=1)
    assert scores.hints.shape == (2, 3, 32, 32)
    assert {"mask_iou", "edge_f1", "kept", "score"} <= scores(0, base_family()).keys()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"signal": "cany"}, "no control signal 'cany'.*'canny'"),
        ({"signal": "xyz"}, "canny, segm, sketch, depth, densepose, landmark"),
        ({"model": "some/model"}, "no training data.*data=FOLDER"),
        ({"conditions": "maps"}, "Add data=FOLDER"),
        ({"hint_learning_rate": 0}, "greater than 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_told(said: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ControlSettings(**said)


def test_depth_needs_files(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'depth' of the image world.*data=FOLDER"):
        _run(ControlSettings(signal="depth", output=tmp_path / "run"))
    shutil.copytree(pairs / "images", tmp_path / "images")
    with pytest.raises(ConfigError, match="depth.*no control images.*conditions=FOLDER"):
        _run(ControlSettings(signal="depth", data=str(tmp_path / "images"), caption="a digit", output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_picture_without_its_control_picture_is_named(pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "pairs")
    (tmp_path / "pairs" / "conditions" / "00002.png").unlink()
    with pytest.raises(DataError, match="00002"):
        _run(ControlSettings(data=str(tmp_path / "pairs"), output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_control_picture_of_another_size_is_named(pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs, tmp_path / "pairs")
    Image.new("RGB", (16, 24)).save(tmp_path / "pairs" / "conditions" / "00001.png")
    with pytest.raises(DataError, match=r"00001 \(16 x 24 instead of 32 x 32\)"):
        _run(ControlSettings(data=str(tmp_path / "pairs"), output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_presets_say_the_published_settings() -> None:
    said = ControlSettings(preset="stable-diffusion", model="some/model", data="pictures", method="coft")
    assert (said.learning_rate, said.r, said.eps) == (1e-5, 4, 25.6)
    assert ControlSettings().hint_learning_rate == 2 * ControlSettings().learning_rate
