"""Text to image: settings, data from every door, one short run, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orthotune.errors import DataError, RecipeError
from orthotune.recipes import text_to_image
from orthotune.recipes.load import load_settings
from orthotune.recipes.text_to_image import TextToImageSettings
from orthotune.worlds import image, image_folders

pytestmark = pytest.mark.skipif(not (image.PIPELINE / "model_index.json").is_file(), reason="no image world here")


def settings(*words: str) -> TextToImageSettings:
    return load_settings(TextToImageSettings, None, words)


def test_the_plan_says_what_would_be_trained_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = "\n".join(text_to_image.plan(settings("steps=7")))
    assert "600 of 32 x 32" in lines and "steps       7, on 112 images" in lines
    assert not list(tmp_path.iterdir())


def test_a_folder_of_one_s_own_is_trained_on_in_buckets_from_a_cache(tmp_path: Path) -> None:
    from PIL import Image

    folder = image_folders.write_captioned(tmp_path / "nines", 4)
    Image.new("RGB", (90, 60), "red").save(folder / "wide.png")
    (folder / "wide.txt").write_text("a red background")
    (folder / "broken.png").write_text("x")
    (folder / "broken.txt").write_text("x")
    words = (
        f"data={folder}", "buckets=true", "steps=2", "batch_size=2", "sample_steps=1", "crop=random",
        f"cache_dir={tmp_path / 'cache'}", "sample_prompts=[a red nine]", "sample_seeds=[0]",
    )  # fmt: skip
    said: list[str] = []
    record = text_to_image.run(settings(*words, f"output={tmp_path / 'run'}"), said.append, bar=False)
    assert record.recipe == "t2i" and record.steps == 2 and not record.scores_before
    assert any("1 of 6 images" in line and "broken" in line for line in said)
    assert (tmp_path / "run" / "adapter").is_dir()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    captions = {one.caption for one in image_folders.captioned_digits(4)} | {"a red background", ""}
    assert len(kept) == 5 + len(captions)
    text_to_image.run(settings(*words, f"output={tmp_path / 'again'}"), said.append, bar=False)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == kept
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("run", "again")
    )
    losses = [[line["train_loss"] for line in lines if "train_loss" in line] for lines in (one, two)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        (("data=./nowhere",), DataError, "nowhere"),
        (("data=no-such.jsonl",), DataError, "no-such.jsonl"),
        (("model=some/where",), RecipeError, "no training data for model=some/where"),
        (("caption_dropout=2",), RecipeError, "caption_dropout"),
        (("crop=middle",), RecipeError, "crop"),
        (("cache=false", "cache_dir=x"), RecipeError, "cache_dir without a cache"),
        (("dta=x",), RecipeError, "Did you mean 'data'"),
    ],
)
def test_what_cannot_be_used_is_worded(words: tuple[str, ...], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        text_to_image.plan(settings(*words))


def test_presets_are_settings() -> None:
    for name in ("stable-diffusion", "sdxl"):
        assert settings(f"preset={name}", "model=m/n", "data=x").buckets
