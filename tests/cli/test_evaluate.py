"""``orthotune evaluate``: what it leaves behind, and how it refuses."""

from __future__ import annotations

import csv
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from orthotune.cli import evaluate
from orthotune.cli.evaluations import EVALUATIONS, Evaluation
from orthotune.metrics.registry import REGISTRY
from tests.support.images import dino, noise, save, step


def test_every_measure_of_the_roster_has_a_command() -> None:
    assert {command.name for command in evaluate.app.registered_commands} >= set(REGISTRY)


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_entry_leads_to_a_function_with_its_options(name: str) -> None:
    entry = EVALUATIONS[name]
    given = entry.parameters.keys() - (set() if entry.place else {"out", "overwrite"})
    called = entry.function() if entry.place else REGISTRY[name].function
    # What an option is not named after must be taken by the function as it comes.
    parameters = inspect.signature(called).parameters
    rest = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    assert rest or given <= parameters.keys()
    needed = {key for key, one in parameters.items() if one.default is one.empty and one.kind is not one.VAR_KEYWORD}
    assert needed <= given and entry.name == name and entry.examples[0].startswith(f"{name} ")


def test_a_new_evaluation_is_an_entry_and_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    module: Any = ModuleType("orthotune.cli.toy_evaluation")
    module.look = lambda **values: seen.append(values)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    count = (int, typer.Option(2, "--count", min=1, help="How often."))
    entry = Evaluation("toy", "toy_evaluation:look", "Look.", ("toy --count 3",), {"count": count})
    app = typer.Typer()
    app.command("toy")(evaluate._verb(entry))
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "Look." in shown and "--count" in shown and "orthotune evaluate toy --count 3" in shown
    assert CliRunner().invoke(app, ["--count", "3"]).exit_code == 0 and seen == [{"count": 3}]
    assert CliRunner().invoke(app, ["--count", "0"]).exit_code == 2


def _edges(column: int) -> np.ndarray:
    return step(column) - step(column + 1)


def test_canny_leaves_json_csv_and_a_sheet(call: Callable, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    results = save(tmp_path / "results", a=step(5), b=step(8), alone=step(3))
    conditions = save(tmp_path / "conditions", a=_edges(4), b=_edges(4))
    done = call("evaluate", "canny", results, conditions, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out/canny.json").read_text())
    assert record["images"] == 2
    assert record["why_skipped"] == ["result alone.png has no condition"]
    assert set(record["summary"]) == {"iou", "accuracy", "f1"}
    with (tmp_path / "out/canny.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["a", "b"]
    with Image.open(tmp_path / "out/canny.png") as sheet:
        assert sheet.width > 3 * 192
        assert sheet.height > 2 * 192 * 10 // 14  # two rows of 14 x 10
    assert "canny, 2 images" in done.stdout
    assert "1 skipped" in done.stderr
    again = call("evaluate", "canny", results, conditions, "--out", tmp_path / "out")
    assert again.exit_code == 2
    assert "not empty" in again.stderr
    inside = call("evaluate", "canny", results, conditions, "--out", results, "--overwrite")
    assert inside.exit_code == 2
    assert (results / "a.png").exists()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("empty", "Found: none. Needed: files that end in"),
        ("gone", "no such folder"),
        ("names", "no two of one name"),
        ("size", "Found: 28 x 20 pixels. Needed: 14 x 10, as its condition"),
        ("cut", "not one image that could be measured"),
    ],
)
def test_bad_images_end_in_words(call: Callable, tmp_path: Path, damage: str, words: str) -> None:
    pytest.importorskip("cv2")
    results, conditions = tmp_path / "results", save(tmp_path / "conditions", a=_edges(4))
    if damage != "gone":
        results.mkdir()
    if damage in ("names", "size", "cut"):
        save(results, **{"b" if damage == "names" else "a": noise(0)})
    if damage == "cut":
        (results / "a.png").write_bytes((results / "a.png").read_bytes()[:200])
    done = call("evaluate", "canny", results, conditions, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_subject_and_fid_take_models_by_path(call: Callable, tmp_path: Path) -> None:
    model = dino(tmp_path / "dino")
    images = save(tmp_path / "images", a=noise(0), b=noise(1), c=noise(2))
    done = call(
        "evaluate", "subject", images, images, "--measures", "dino", "--dino", model, "--out", tmp_path / "subject"
    )
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "subject/subject.png").exists()
    pytest.importorskip("torchmetrics")
    done = call("evaluate", "fid", images, images, "--model", model, "--out", tmp_path / "fid")
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "fid/fid.json").read_text())["summary"]["fid"] == pytest.approx(0, abs=1e-4)


def test_landmarks_from_files(call: Callable, tmp_path: Path) -> None:
    results = save(tmp_path / "results", a=noise(0))
    for name, shift in (("wanted", 0), ("found", 5)):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"a": [[index % 9 + shift, index % 7] for index in range(68)]})
        )
    words = ("evaluate", "landmarks", results, tmp_path / "wanted.json", "--found", tmp_path / "found.json")
    done = call(*words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "5.0000" in done.stdout


def test_energy_of_an_adapter_stays(call: Callable, trained: Path, tmp_path: Path) -> None:
    words = ("evaluate", "energy", trained / "adapter", "--base", trained / "base")
    done = call(*words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "out/energy.json").read_text())
    assert len(record["rows"]) == 4  # q_proj and down_proj of two layers
    assert record["summary"]["change"] < 1e-5
    assert not (tmp_path / "out/energy.png").exists()


def test_energy_of_a_whole_model(call: Callable, trained: Path, tmp_path: Path) -> None:
    done = call("evaluate", "energy", trained / "base", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "--base" in done.stderr
    done = call("evaluate", "energy", trained / "base", "--base", trained / "base", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert json.loads((tmp_path / "out/energy.json").read_text())["summary"]["change"] == 0
