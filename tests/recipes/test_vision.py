"""Classes of images: three methods on a tiny vision transformer, exact at the start, resumed, reloaded and merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification

from orthotune.errors import OrthotuneError, RecipeError
from orthotune.files.tables import write_table
from orthotune.recipes.load import load_settings
from orthotune.recipes.text_job import adapter_config
from orthotune.recipes.vision import VisionSettings, job, run
from orthotune.text.headed_model import adapted
from orthotune.worlds.tiny_models import tiny_model
from tests.support.head_runs import TOLERANCE, check_resumed, merged, reloaded, silent
from tests.support.tiny_text import write_jsonl

pytest.importorskip("sklearn", reason="scores of classes")
Image: Any = pytest.importorskip("PIL.Image")
KIND = AutoModelForImageClassification
METHODS = ("oft", "lora", "full")
COLOURS = {"red": (200, 30, 30), "green": (30, 190, 60), "grey": (120, 120, 120)}


def write_images(folder: Path, count: int) -> Path:
    """Plain images of uneven sizes, in a folder for each colour."""
    chance = np.random.default_rng(count)
    for number in range(count):
        name = list(COLOURS)[number % 3]
        height, width = 20 + number % 5, 30 - number % 7
        noise = chance.integers(-20, 20, (height, width, 3))
        pixels = (np.array(COLOURS[name]) + noise).clip(0, 255).astype(np.uint8)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number:02}.png")
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("cache")
    data = write_images(tmp_path_factory.mktemp("images") / "new", 30)

    def make(output: Path, **more: Any) -> VisionSettings:
        values: dict[str, Any] = {"model": "tiny-vit", "data": str(data), "steps": 4, "held_out": 0.2}
        values |= {"batch_size": 6, "learning_rate": 1e-2, "warmup": 0, "save_every": 2}
        if more.get("method", "oft") == "oft":
            values["block_size"] = 8
        if more.get("method") == "full":
            values["learning_rate"] = 1e-3
        return VisionSettings(**(values | more), output=output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORTHOTUNE_CACHE", str(cache))
        yield make


@pytest.fixture(scope="module")
def runs(given: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    old = write_images(folder / "old", 7)
    settings = {method: given(folder / method, method=method, old_data=str(old)) for method in METHODS}
    return {method: (one, run(one, silent, bar=False)) for method, one in settings.items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_measures_saves_and_reloads(runs: Any, method: str) -> None:
    settings, record = runs[method]
    assert {"accuracy", "macro_f1", "loss", "old_accuracy"} <= record.scores_after.keys()
    assert record.scores_after["loss"] < record.scores_before["loss"]
    model = reloaded(KIND, tiny_model("tiny-vit"), settings.output)
    assert list(model.config.id2label.values()) == ["green", "grey", "red"]
    parts = job(settings)
    examples = parts.data()[0].domains["old"]
    collate = parts.tokenizer()
    pixels = collate(images=[Image.fromarray(one.inputs.pixels()) for one in examples], return_tensors="pt")
    with torch.no_grad():
        found = model(**pixels).logits.argmax(-1).tolist()
    right = [model.config.id2label[number] == one.label for number, one in zip(found, examples, strict=True)]
    assert sum(right) / len(right) == record.scores_after["old_accuracy"]


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_merging_keeps_the_head_and_the_processor(runs: Any, method: str, tmp_path: Path) -> None:
    output = runs[method][0].output
    tuned, plain = (reloaded(KIND, tiny_model("tiny-vit"), output), merged(KIND, output, tmp_path / "merged"))
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(plain(pixels).logits, tuned(pixels).logits, **TOLERANCE)
    assert plain.config.id2label == tuned.config.id2label
    assert (tmp_path / "merged" / "preprocessor_config.json").is_file()


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_before_the_first_step_the_logits_are_those_of_the_base(runs: Any, method: str) -> None:
    settings = runs[method][0]
    parts = job(settings)
    parts.data()
    base, model = parts.model(torch.float32), parts.model(torch.float32)
    model = adapted(model, adapter_config(settings, model, [], parts.task), ["classifier"])
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(pixel_values=pixels).logits, base(pixel_values=pixels).logits)
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert any("classifier.modules_to_save" in name for name in trained)


def test_a_run_that_was_cut_ends_with_the_same_bits(runs: Any, tmp_path: Path) -> None:
    settings, _ = runs["oft"]
    check_resumed(run, settings.model_copy(update={"output": tmp_path / "cut"}), settings.output)


def test_a_table_of_images_is_the_same_data_as_its_folders(runs: Any, tmp_path: Path) -> None:
    folder = Path(runs["oft"][0].data)
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    write_table(folder / "table.csv", [{"image": str(name), "label": name.parts[0]} for name in names])
    one, other = (
        job(VisionSettings(model="tiny-vit", data=str(path), held_out=0)).data()
        for path in (folder, folder / "table.csv")
    )  # fmt: skip
    assert one[1].id2label == other[1].id2label
    assert all(
        (a.inputs.pixels() == b.inputs.pixels()).all() for a, b in zip(one[0].train, other[0].train, strict=True)
    )


def _spoiled(folder: Path) -> dict[str, Any]:
    (folder / "red").mkdir(parents=True)
    (folder / "red" / "x.png").write_bytes(b"no image")
    return {}


def _loose(folder: Path) -> dict[str, Any]:
    Image.new("RGB", (8, 8)).save(folder / "loose.png")
    return {}


def _one_class(folder: Path) -> dict[str, Any]:
    for path in (folder / "green").iterdir():
        path.unlink()
    for path in (folder / "grey").iterdir():
        path.unlink()
    return {}


def _table(rows: list[dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {"data": str(write_jsonl(folder / "table.jsonl", rows))}


def _file(folder: Path) -> dict[str, Any]:
    (folder / "list.xls").write_text("")
    return {"data": str(folder / "list.xls")}


def _unknown_class(folder: Path) -> dict[str, Any]:
    write_images(folder / "held", 3)
    (folder / "held" / "red").rename(folder / "held" / "blue")
    (folder / "held").rename(folder.with_name("held"))
    return {"eval_data": str(folder.with_name("held"))}


WRONG: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "an unreadable image": (_spoiled, "cannot be read.*x.png"),
    "an image outside of the classes": (_loose, "outside of the folders of the classes"),
    "one class only": (_one_class, "one class, 'red'"),
    "an unknown class in eval": (_unknown_class, "label 'blue'.*one of green, grey, red"),
    "no such folder": (lambda folder: {"data": str(folder / "none")}, "no such file or directory"),
    "an empty folder": (lambda folder: {"data": str(folder / "empty")}, "image"),
    "a file of another kind": (_file, "suffix '.xls'"),
    "a missing column": (_table([{"image": "red/00.png", "class": "red"}]), "Needed: label"),
    "a missing image": (_table([{"image": "red/77.png", "label": "red"}] * 2), "77.png"),
    "a number as an image": (_table([{"image": 5, "label": "red"}]), "column 'image'. Found: int. Needed: a path"),
    "no such model": (lambda folder: {"model": "./nowhere"}, "no such directory"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_in_words(case: str, given: Any, tmp_path: Path) -> None:
    spoil, message = WRONG[case]
    folder = write_images(tmp_path / "data", 6) if case != "an unreadable image" else tmp_path / "data"
    (folder / "empty").mkdir(parents=True)
    options = {"data": str(folder)} | spoil(folder)
    with pytest.raises(OrthotuneError, match=message):
        run(given(tmp_path / "run", held_out=0, **({"data": options.pop("data")} | options)), silent, bar=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["max_length=9"], "max_length has no meaning for train vision"),
        (["image_size=9"], "unknown key 'image_size'"),
        (["broken=keep"], "broken='keep'"),
    ],
)
def test_wrong_settings_are_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(VisionSettings, None, words)


def test_the_tiny_model_is_the_same_wherever_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for name in ("one", "other"):
        monkeypatch.setenv("ORTHOTUNE_CACHE", str(tmp_path / name))
        folders.append(tiny_model("tiny-vit"))
    one, other = ((folder / "model.safetensors").read_bytes() for folder in folders if folder)
    assert one == other and json.loads((tmp_path / "one/models/tiny-vit/config.json").read_text())["image_size"] == 32
