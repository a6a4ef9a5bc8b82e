"""``orthotune evaluate drift``, for texts and for pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune import OFTConfig, get_peft_model
from orthotune.worlds import image, text
from tests.support.contract_cases import randomize
from tests.support.images import dino


def _saved(model: Any, folder: Path, base: str | None, targets: list[str], std: float) -> Path:
    """An adapter of ``model`` turned at random; by nothing for ``std`` 0."""
    model.name_or_path = base
    tuned = get_peft_model(model, OFTConfig(oft_block_size=8, target_modules=targets))
    randomize(tuned, 0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "oft_" in name:
                parameter.mul_(std)
    tuned.peft_config["default"].base_model_name_or_path = base
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def of_texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM

    model, home = AutoModelForCausalLM.from_pretrained(text.MODEL, dtype=torch.float32), tmp_path_factory.mktemp("t")
    return _saved(model, home / "adapter", "text-world", ["q_proj"], 0.3)


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("p")
    _saved(image.load_pipeline().unet, home / "still", None, ["to_q"], 0)
    return _saved(image.load_pipeline().unet, home / "adapter", None, ["to_q", "to_out.0"], 0.5)


def test_texts_of_the_embedded_model(call: Callable, of_texts: Path) -> None:
    words = ("--limit", 2, "--max-length", 48)
    done = call("evaluate", "drift", of_texts, *words, "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["base"], found["data"]) == ("text-world", "text-world/old_test")
    assert 0 < found["kl"] < found["kl_largest"] and 0 < found["same_choice"] < 1
    plain = call("evaluate", "drift", of_texts, *words, "--data", "text-world/old_test").stdout
    assert f"{found['kl']:.5f} nats per token" in plain and f"{found['tokens']:,} tokens" in plain


def test_pictures_of_the_embedded_pipeline(call: Callable, of_pictures: Path, tmp_path: Path) -> None:
    words = ("--steps", 2, "--limit", 3, "--json")
    done = call("evaluate", "drift", of_pictures, *words)
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["base"] == "image-world" and found["pictures"] == 3 and "built-in classifier" in found["seen_by"]
    assert 0 < found["pixels"] < 1 and 0 < found["features"] <= found["features_largest"]
    assert found["unrelated"] > 0
    still = json.loads(call("evaluate", "drift", of_pictures.with_name("still"), *words).stdout)
    # a fresh rotation is the identity to a rounding of float32, which may move a pixel by one of 255
    assert still["pixels"] < 1 / 255 and still["features"] < found["features"] / 10
    (tmp_path / "prompts.txt").write_text("a red three\n\n  a blue one on grass \n")
    pipeline = ("--base", image.PIPELINE, "--data", tmp_path / "prompts.txt", "--steps", 2)
    seen = call("evaluate", "drift", of_pictures, *pipeline, "--model", dino(tmp_path / "dino"))
    assert seen.exit_code == 0 and "in 2 images" in seen.stdout and f"seen by      {tmp_path / 'dino'}" in seen.stdout
    blind = call("evaluate", "drift", of_pictures, *pipeline)
    assert "not compared: name a vision model" in blind.stdout


def test_what_cannot_be_measured_is_said(call: Callable, of_texts: Path, of_pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    cases = [
        ([of_texts, "--data", "text-world/old_tset"], "Did you mean 'old_test'"),
        ([of_texts, "--data", tmp_path / "none.jsonl"], "none.jsonl"),
        ([of_texts, "--steps", 3], "are for image models"),
        ([of_texts, "--base", image.PIPELINE], "--data"),
        ([of_texts, "--base", "image-world"], "layers that the model does not have"),
        ([of_pictures, "--base", "text-world"], "layers that the model does not have"),
        ([of_pictures, "--data", tmp_path / "empty.txt"], "only empty lines"),
        ([of_pictures, "--data", tmp_path / "none.txt"], "no such file"),
        ([of_pictures, "--model", tmp_path], f"model {tmp_path}"),
        ([tmp_path / "none"], "There is no adapter at"),
    ]
    for words, message in cases:
        done = call("evaluate", "drift", *words, "--limit", 1)
        assert done.exit_code == 2, (words, done.stderr)
        assert message in done.stderr and "Traceback" not in done.stderr and not done.stdout, (words, done.stderr)


def test_a_base_that_nobody_named(call: Callable, of_texts: Path, tmp_path: Path) -> None:
    config = json.loads((of_texts / "adapter_config.json").read_text())
    for file in of_texts.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    done = call("evaluate", "drift", tmp_path)
    assert done.exit_code == 2 and "Name the base with --base" in done.stderr
