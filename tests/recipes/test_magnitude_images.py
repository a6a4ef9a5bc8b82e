"""Fitting magnitudes beside rotations of the image world's pipeline."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orthotune.image.adapter.saved_adapter import load_adapter
from orthotune.image.families.registry import open_family
from orthotune.recipes import control, magnitude, subject
from orthotune.recipes.control import ControlSettings
from orthotune.recipes.magnitude import load_magnitude
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.worlds import image

pytestmark = pytest.mark.skipif(not image.CARD.is_file(), reason="the image world is not in this tree")
QUICK = {"steps": 2, "batch_size": 2, "sample_steps": 1, "sample_seeds": [0], "sample_prompts": ["a sks digit"]}


def fit(run: Path) -> tuple[Path, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The fit's folder, and what the adapter holds before and after it."""
    settings = load_magnitude(None, [f"adapter={run}", "learning_rate=0.05", "steps=2"])
    assert settings.output == run.with_name(f"{run.name}-magnitude")
    magnitude.run(settings, say=lambda _: None, bar=False)
    kept = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (run, settings.output)]
    return settings.output, kept[0], kept[1]


def only_scales(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    added = after.keys() - before.keys()
    return (
        all(torch.equal(after[name], value) for name, value in before.items())
        and len(added) == len(before)
        and all("oft_magnitude" in name and (after[name] != 1).any() for name in added)
    )


@pytest.fixture(autouse=True)
def unscored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the scores' 240 pictures; they have tests of their own."""
    monkeypatch.setattr(subject, "_scores", lambda settings: [])


def test_a_subject(tmp_path: Path) -> None:
    given = {"class_count": 2, "class_steps": 1, "learning_rate": 1e-2, "method": "coft"}
    subject.run(SubjectSettings(**QUICK, **given, output=tmp_path / "nine"), say=lambda _: None, bar=False)
    folder, before, after = fit(tmp_path / "nine")
    assert only_scales(before, after)
    assert not (folder / "class-images").exists(), "the class pictures of the run are used again"
    family = open_family(image.PIPELINE)
    plain = family.generate(["a sks digit"], [0], steps=2)
    load_adapter(family, tmp_path / "nine" / "adapter")
    turned = family.generate(["a sks digit"], [0], steps=2)
    again = open_family(image.PIPELINE)
    load_adapter(again, folder / "adapter")
    scaled = again.generate(["a sks digit"], [0], steps=2)
    assert not torch.equal(plain, turned) and not torch.equal(turned, scaled)


def test_control_keeps_its_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = control.job
    monkeypatch.setattr(control, "job", lambda *given: dataclasses.replace(job(*given), scores=[]))
    said = {key: value for key, value in QUICK.items() if key != "sample_prompts"}
    control.run(ControlSettings(**said, output=tmp_path / "masks"), say=lambda _: None)
    folder, before, after = fit(tmp_path / "masks")
    assert only_scales(before, after)
    name = "adapter/hint_encoder.safetensors"
    first, second = load_file(tmp_path / "masks" / name), load_file(folder / name)
    assert all(torch.equal(second[key], value) for key, value in first.items())
