"""The subject recipe from settings to a finished directory, on a tiny pipeline and on the embedded one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from orthotune.errors import DataError, OutputError, RecipeError
from orthotune.image.adapter.saved_adapter import load_adapter
from orthotune.image.families.registry import open_family
from orthotune.recipes import subject
from orthotune.recipes.image_run import run_image
from orthotune.recipes.method_settings import METHODS
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.runs.record import RunRecord
from orthotune.worlds.image import PIPELINE
from orthotune.worlds.image_folders import write_subject
from tests.support.tiny_pipelines import save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("sd15", tmp_path_factory.mktemp("models") / "sd15")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_subject(tmp_path_factory.mktemp("data") / "nines")


def settings(tiny: Path, pictures: Path, output: Path, **said: Any) -> SubjectSettings:
    usual = {
        "model": str(tiny), "instance_images": str(pictures), "instance_prompt": "a sks digit",
        "class_prompt": "a digit", "class_count": 3, "class_steps": 2, "batch_size": 2, "steps": 4, "save_every": 2,
        "sample_prompts": ["a red sks digit"], "sample_steps": 2, "learning_rate": 0.01, "output": output,
    }  # fmt: skip
    if said.get("method") != "full":
        usual["block_size"] = 4
    return SubjectSettings(**usual | said)


def quiet(words: str) -> None:
    pass


@pytest.mark.parametrize("method", METHODS)
def test_what_a_run_leaves_draws_what_it_drew(tiny: Path, pictures: Path, tmp_path: Path, method: str) -> None:
    said = settings(tiny, pictures, tmp_path / "run", method=method, ema=0.5)
    record = subject.run(said, quiet, bar=False)
    home = said.output
    assert RunRecord(**json.loads((home / "run.json").read_text())) == record
    assert (record.recipe, record.method, record.steps, record.skipped_steps) == ("subject", method, 4, 0)
    assert all((home / name).exists() for name in record.artifacts.values())
    assert [path.name for path in sorted((home / "class-images").glob("*.png"))] == [f"{n:05}.png" for n in range(3)]
    if method in ("oft", "coft"):
        # float32 rotations of side 4; measured for exact maps up to 5e-6 over all their tests
        assert record.weights.orthogonality_error is not None and record.weights.orthogonality_error < 5e-6
        assert record.weights.energy_change is not None and record.weights.energy_change < 1e-5
    else:
        assert record.weights.orthogonality_error is None
    kept = "model" if method == "full" else "adapter"
    family = open_family(home / "model" if method == "full" else tiny)
    if method != "full":
        load_adapter(family, home / kept)
    again = family.generate(["a red sks digit"] * 2, [0, 1], steps=2)
    samples = [entry for entry in json.loads((home / "samples.json").read_text()) if entry["step"] == 4]
    for picture, entry in zip(again, samples, strict=True):
        drawn = torch.tensor(list(Image.open(home / entry["file"]).tobytes())).view(16, 16, 3).permute(2, 0, 1)
        # LoRA's scale and an adapter's rounding in a file: the last of 255 steps may differ.
        assert (picture.int() - drawn.int()).abs().max() <= 1


def test_a_killed_run_goes_on_and_ends_alike(tiny: Path, pictures: Path, tmp_path: Path) -> None:
    whole, cut = (settings(tiny, pictures, tmp_path / name) for name in ("whole", "cut"))
    subject.run(whole, quiet, bar=False)

    class Killed(Exception):
        """In the scores of step 4, after its checkpoint at 2."""

    def kill(step: int, family: Any) -> dict[str, float]:
        if step == 3:
            raise Killed
        return {}

    import dataclasses

    often = cut.model_copy(update={"eval_every": 1})
    with pytest.raises(Killed):
        run_image(often, dataclasses.replace(subject.job(often), scores=[kill]), quiet, bar=False)
    with pytest.raises(OutputError, match="an unfinished run with checkpoint-2. Pass resume=auto"):
        subject.run(cut, quiet, bar=False)
    resumed = cut.model_copy(update={"resume": "auto"})
    subject.run(resumed, quiet, bar=False)
    files = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    told: list[str] = []
    assert subject.run(resumed, told.append, bar=False).steps == 4 and "finished" in told[-1]
    with pytest.raises(RecipeError, match="steps=3 instead of 4.*may be raised, not lowered"):
        subject.run(resumed.model_copy(update={"steps": 3}), quiet, bar=False)


def test_a_dry_run_says_much_and_writes_nothing(tiny: Path, pictures: Path, tmp_path: Path) -> None:
    lines = subject.plan(settings(tiny, pictures, tmp_path / "run", sample_prompts=["a digit"]))
    assert not (tmp_path / "run").exists()
    text = "\n".join(lines)
    assert "'a digit' does not hold 'sks'" in text
    assert "images      5: 5 of 16 x 16" in text and "4, on 8 images" in text
    assert "3 images of 'a digit'" in text and "memory" in text


def test_without_class_pictures_and_with_a_text_encoder(tiny: Path, pictures: Path, tmp_path: Path) -> None:
    said = settings(tiny, pictures, tmp_path / "run", class_prompt=None, train_text_encoder=True, buckets=True)
    record = subject.run(said, quiet, bar=False)
    assert not (said.output / "class-images").exists() and record.trainable_parameters > 0
    names = json.loads((said.output / "adapter" / "adapter_config.json").read_text())
    assert "q_proj" in names["target_modules"]


def test_no_pictures(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        subject.run(settings(tiny, tmp_path / "empty", tmp_path / "run"), quiet, bar=False)
    assert not (tmp_path / "run").exists()


def test_the_embedded_pipeline_learns_from_what_comes_with_it(tmp_path: Path) -> None:
    said = SubjectSettings(steps=2, class_count=2, class_steps=1, batch_size=1, output=tmp_path / "run", sample_steps=1)
    import dataclasses

    def count(step: int, family: Any) -> dict[str, float]:
        return {"touched": float(step)}

    record = run_image(said, dataclasses.replace(subject.job(said), scores=[count]), quiet, bar=False)
    assert (record.scores_before, record.scores_after) == ({"touched": 0.0}, {"touched": 2.0})
    assert [score for score in subject.job(said).scores] and PIPELINE.is_dir()


def test_class_pictures_that_keep_what_the_base_predicts(tiny: Path, pictures: Path, tmp_path: Path) -> None:
    # The first step's loss is the subject's alone: a fresh adapter has changed nothing that is kept.
    weights = {0.5: 0.0, 2.0: 0.0}
    for weight in weights:
        said = settings(tiny, pictures, tmp_path / str(weight), prior_target="base", prior_weight=weight)
        record = subject.run(said, quiet, bar=False)
        assert record.settings["prior_target"] == "base"
        lines = [json.loads(line) for line in (said.output / "metrics.jsonl").read_text().splitlines()]
        weights[weight] = next(line["train_loss"] for line in lines if line.get("step") == 1)
    assert weights[0.5] == pytest.approx(weights[2.0], rel=1e-6)
    assert "prior_target" not in settings(tiny, pictures, tmp_path).record()
