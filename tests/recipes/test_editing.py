"""Editing models, from folders and tables to a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from orthotune.errors import DataError, RecipeError
from orthotune.image.data.batch import Sources
from orthotune.image.editing.dataset import EditingDataset
from orthotune.image.editing.examples import read_edits
from orthotune.image.families.registry import family_of
from orthotune.recipes import subject
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.recipes.text_to_image import TextToImageSettings, job, plan, run
from tests.support.transformer_pipelines import tiny_transformer_pipeline

SIDES = [(32, 64), (40, 48)]


def picture(path: Path, size: tuple[int, int], shade: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folders of two images with instructions, of references, one of another size, and of masks."""
    for number, size in enumerate(SIDES):
        picture(tmp_path / "after" / f"{number}.png", size, number)
        (tmp_path / "after" / f"{number}.txt").write_text(f"a red digit {number}", encoding="utf-8")
        picture(tmp_path / "before" / f"{number}.png", size if number else (24, 24), 10 + number)
        mask = np.zeros(size, dtype=np.uint8)
        mask[: size[0] // 2] = 255
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    return tmp_path


def test_references_and_masks_are_those_of_the_same_name(folder: Path) -> None:
    found = read_edits(folder / "after", [folder / "before"], str(folder / "masks"))
    assert [(one.image.name, one.caption) for one in found] == [("0", "a red digit 0"), ("1", "a red digit 1")]
    assert [one.references[0].origin for one in found] == [folder / "before" / f"{n}.png" for n in (0, 1)]
    assert all(one.mask is not None and one.mask.height == one.image.height for one in found)
    twice = read_edits(folder / "after", [folder / "before", folder / "masks"])
    assert [len(one.references) for one in twice] == [2, 2]
    (folder / "before").rename(folder / "after" / "before")
    inside = read_edits(folder / "after", [folder / "after" / "before"])
    assert [one.image.name for one in inside] == ["0", "1"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_tables_name_references_and_masks(folder: Path, kind: str) -> None:
    rows = [{"target": f"after/{n}.png", "instruction": "make this red", "reference": f"before/{n}.png",
             "mask": f"masks/{n}.png"} for n in (0, 1)]  # fmt: skip
    table = folder / f"rows.{kind}"
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        table.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = read_edits(table)
    assert [(len(one.references), one.mask is not None, one.caption) for one in found] == [
        (1, True, "make this red")
    ] * 2


def test_what_is_missing_is_named(folder: Path) -> None:
    (folder / "before" / "1.png").unlink()
    with pytest.raises(DataError, match=r"reference images in .*none for 1, of 2 images"):
        read_edits(folder / "after", [folder / "before"])
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(folder / "masks" / "0.png")
    with pytest.raises(DataError, match=r"another size for 0"):
        read_edits(folder / "after", masks=str(folder / "masks"))
    table = folder / "rows.jsonl"
    rows: list[dict[str, Any]] = [{"image": "after/0.png", "text": "a", "references": ["before/0.png"]},
                                  {"image": "after/1.png", "text": "a"}]  # fmt: skip
    table.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"references of .*0 at .*, 1 at "):
        read_edits(table)


def test_a_batch_has_what_its_images_are_made_of(folder: Path) -> None:
    family = family_of(tiny_transformer_pipeline("flux-kontext"))
    examples = read_edits(folder / "after", [folder / "before"])
    data = EditingDataset(examples, family, 32, caption_dropout=0.5, seed=1, say=lambda _: None)
    data.prepare()
    batch = data.batch([0, 1])
    assert batch.conditions is not None and batch.conditions["reference"].shape == batch.latents.shape
    # the second reference has the size of its image and is resized and cropped like it
    shown = torch.from_numpy(np.asarray(Image.open(folder / "before" / "1.png").resize((38, 32), 1))[:, 3:35].copy())
    expected = family.encode_sources(Sources(shown.permute(2, 0, 1)[None, None]))["reference"]
    torch.testing.assert_close(batch.conditions["reference"][1:], expected, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="2 references for each image"):
        EditingDataset(read_edits(folder / "after", [folder / "before"] * 2), family, 32)
    fill = family_of(tiny_transformer_pipeline("flux-fill"))
    with pytest.raises(DataError, match="no masks"):
        EditingDataset(examples, fill, 32)
    varied = EditingDataset(examples, fill, 32, random_masks=True, cache=False, say=lambda _: None)
    first, second = (varied.sources(index).mask for index in (0, 2))
    assert first is not None and second is not None and not torch.equal(first, second)


def test_a_run_trains_an_editing_model_and_shows_what_it_reads(folder: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    tiny_transformer_pipeline("flux-kontext").save_pretrained(model)
    given: dict[str, Any] = {
        "model": str(model), "data": str(folder / "after"), "resolution": 32, "r": 2, "steps": 2, "batch_size": 2,
        "sample_steps": 1, "output": tmp_path / "run", "rest_encoders": True,
    }  # fmt: skip
    settings = TextToImageSettings(**given, references=folder / "before")
    record = run(settings, say=lambda _: None, bar=False)
    assert record.steps == 2 and (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
    with Image.open(tmp_path / "run" / "samples" / "step-000002" / "00.png") as image:
        assert image.size == (64, 32)  # what the model reads, and the image
    lines = "\n".join(plan(settings))
    assert "flux-kontext" in lines and "12 GB: yes" in lines
    with pytest.raises(RecipeError, match="for flux-kontext"):
        run(TextToImageSettings(**given | {"output": tmp_path / "other"}), say=lambda _: None, bar=False)
    few = {"instance_images": str(folder / "after"), "instance_prompt": "a sks cat", "model": str(model)}
    with pytest.raises(RecipeError, match=r"train subject with model=.*flux-kontext, which reads images to edit"):
        subject.plan(SubjectSettings(**few, resolution=32, r=2))


def test_references_for_a_model_that_reads_none_are_refused(folder: Path) -> None:
    settings = TextToImageSettings(model="m", data=str(folder / "after"), references=folder / "before")
    with pytest.raises(RecipeError, match="a z-image model, which reads captions alone"):
        job(settings, say=lambda _: None).data(family_of(tiny_transformer_pipeline("z-image")), None)
    for more, match in ({"rewind": "auto", "rewind_prompts": folder / "x.txt"}, "rewind"), (
        {"train_text_encoder": True}, "train_text_encoder"
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=match):
            job(settings.model_copy(update=more), say=lambda _: None)
    with pytest.raises(ValueError, match="rest_encoders needs encodings that are kept"):
        TextToImageSettings(rest_encoders=True, cache=False)


def test_a_table_with_columns_for_editing_still_trains_a_model_of_captions(folder: Path) -> None:
    table, said = folder / "rows.jsonl", list[str]()
    row = {"image": "after/0.png", "text": "a", "mask": "no/such.png", "reference": "before/0.png"}
    table.write_text(json.dumps(row), encoding="utf-8")
    found = job(TextToImageSettings(model="image-world", data=str(table)), say=said.append)
    assert found.sampler is None and found.prompts == ["a"]
    assert any("are not read: image-world reads captions alone" in one for one in said)
