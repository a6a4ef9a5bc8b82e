"""``orthotune train control``: what it says before training, and what it says of wrong input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import Result

from orthotune.worlds.image_folders import write_control
from tests.support.tiny_pipelines import save_tiny

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("control")
    save_tiny("sd15", home / "base")
    write_control(home / "pairs", "segm", count=4)
    return home


def test_a_dry_run_says_what_would_be_trained(call: Call, tmp_path: Path) -> None:
    done = call("train", "control", "--dry-run", "--output", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    for words in ("segm", "maps of classes", "image-world", "1500 of 32 x 32", "400", "100,192"):
        assert words in done.stdout
    assert not (tmp_path / "run").exists()


def test_a_recipe_is_trained_into_a_folder_that_says_what_it_holds(call: Call, home: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"model: {home / 'base'}\ndata: {home / 'pairs'}\nsteps: 9\nbatch_size: 2\nblock_size: 2\n")
    done = call("train", "control", recipe, "steps=2", "sample_steps=1", "--signal", "segm", "-o", tmp_path / "run")
    assert done.exit_code == 0, done.stderr
    kept = {path.name for path in (tmp_path / "run" / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "hint_encoder.safetensors", "hint_encoder.json"} <= kept


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--signal", "cany"], "Did you mean 'canny'"),
        (["signl=canny"], "Did you mean 'signal'"),
        (["--signal", "depth"], "conditions=FOLDER"),
        (["model=some/model"], "data=FOLDER"),
    ],
    ids=str,
)
def test_wrong_settings_end_in_words(call: Call, tmp_path: Path, words: list[str], told: str) -> None:
    done = call("train", "control", *words, "-o", tmp_path / "run")
    assert done.exit_code == 2
    assert told in done.stderr.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_a_wrong_pair_is_named(call: Call, home: Path, tmp_path: Path) -> None:
    write_control(tmp_path / "pairs", "segm", count=3)
    conditions = tmp_path / "pairs" / "conditions"
    Image.new("RGB", (8, 8)).save(conditions / "00001.png")
    words = ["train", "control", f"model={home / 'base'}", f"data={tmp_path / 'pairs'}", "-o", tmp_path / "run"]
    done = call(*words)
    assert (done.exit_code, "00001 (8 x 8 instead of 32 x 32)" in done.stderr) == (2, True)
    (conditions / "00001.png").unlink()
    done = call(*words)
    assert (done.exit_code, "00001" in done.stderr) == (2, True)
