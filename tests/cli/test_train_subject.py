"""``orthotune train subject`` from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from orthotune.worlds.image_folders import write_subject
from tests.support.tiny_pipelines import save_tiny


def test_a_subject_is_trained_and_reported(call: Callable, tmp_path: Path) -> None:
    images, model = write_subject(tmp_path / "nines"), save_tiny("sd15", tmp_path / "model")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {model}\nsteps: 9\nblock_size: 4\nbatch_size: 1\nsample_steps: 1\n")
    words = [
        "train",
        "subject",
        recipe,
        "steps=2",
        "--images",
        images,
        "--prompt",
        "a sks digit",
        "-o",
        tmp_path / "run",
    ]
    planned = call(*words, "--dry-run")
    assert planned.exit_code == 0, planned.stderr
    assert "stable-diffusion" in planned.stdout and not (tmp_path / "run").exists()
    done = call(*words)
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["steps"] == 2
    assert (tmp_path / "run" / "report.html").is_file() and "samples" in done.stdout
    again = call(*words)
    assert again.exit_code == 2 and "a finished run. Pass output=PATH" in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stpes=2"], "command line: unknown key 'stpes'. Did you mean 'steps'?"),
        (["--images", "nowhere", "model=m"], "instance_prompt is missing"),
        (["trackers=[mlflow]"], "no such tracker"),
        (["--preset", "llama"], "preset 'llama'"),
    ],
)
def test_faults_are_worded(call: Callable, words: list[str], message: str, tmp_path: Path) -> None:
    done = call("train", "subject", *words, "-o", tmp_path / "run")
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_presets_of_every_recipe_are_listed(call: Callable) -> None:
    listed = call("presets").stdout
    assert "subject/sdxl" in listed and "subject/image-world" in listed
    assert call("presets", "subject/sdxl").stdout.startswith("# SDXL")
