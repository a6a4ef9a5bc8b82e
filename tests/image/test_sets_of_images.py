"""Data sets that are made of several: images are told apart by their files, and every set has its own epochs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from orthotune.errors import ConfigError, DataError, RecipeError
from orthotune.files.json_file import write_json
from orthotune.image.adapter.prior import WithPrior
from orthotune.image.adapter.saved_adapter import expert_of
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.caption_tags import Tags
from orthotune.image.data.captions import read_examples
from orthotune.image.draw import draw
from orthotune.image.editing.dataset import EditingDataset
from orthotune.image.editing.examples import read_edits
from orthotune.image.families.flow_matching import FlowTimes
from orthotune.image.families.noise_levels import NoiseLevels, shifted_sigmas
from orthotune.image.families.registry import family_of
from orthotune.image.held_out import hold_out
from orthotune.image.loop.memory_estimate import OPTIMIZER_BYTES
from orthotune.image.loop.optimizer import make_optimizer
from orthotune.image.loop.options import LoopOptions, OptimizerName
from orthotune.image.opened_pipeline import _adapter_of_run
from orthotune.image.training_sheet import draw_training
from orthotune.recipes.text_to_image import TextToImageSettings
from tests.support.tiny_pipelines import tiny_pipeline
from tests.support.transformer_pipelines import tiny_transformer_pipeline


@pytest.fixture(scope="module")
def family() -> Any:
    return family_of(tiny_pipeline("sd15"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of three images with the same names."""
    folder = tmp_path_factory.mktemp("sets")
    for place, kind in enumerate(("dog", "cat")):
        (folder / kind).mkdir()
        for number in range(3):
            pixels = np.random.default_rng(9 * place + number).integers(256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / kind / f"{number}.png")
    return folder


def examples_in(folder: Path) -> Any:
    return read_examples(folder, caption="sks, a, b, c, d", say=lambda _: None)


def test_images_of_two_folders_with_the_same_names_are_six_images(home: Path, tmp_path: Path, family: Any) -> None:
    data = ImageDataset(
        examples_in(home / "dog") + examples_in(home / "cat"), family, 16, cache=False, say=lambda _: None
    )
    train, held = hold_out(data, 3, seed=0)
    assert (len(train), len(held["new"])) == (3, 3)
    assert draw_training(data, tmp_path / "six.png") and draw_training(
        ImageDataset(examples_in(home / "dog"), family, 16, cache=False, say=lambda _: None), tmp_path / "three.png"
    )
    with Image.open(tmp_path / "six.png") as six, Image.open(tmp_path / "three.png") as three:
        assert six.width > three.width


def test_tags_vary_beside_class_images(home: Path, family: Any) -> None:
    subject = ImageDataset(
        examples_in(home / "dog")[:2], family, 16, tags=Tags(shuffle=True, keep=1), say=lambda _: None
    )
    classes = ImageDataset(examples_in(home / "cat"), family, 16, say=lambda _: None)
    data = WithPrior(subject, classes)
    assert data.epoch_in_index
    batches = [data.batch([index + epoch * 3 for epoch in range(6)]) for index in (0, 2)]
    for batch in batches:  # both are the first image of the subject: in its first turn of an epoch, and in its second
        assert torch.equal(batch.latents[:6], subject.batch([0] * 6).latents)
    assert len({caption for batch in batches for caption in batch.captions[:6]}) > 6
    assert {caption for batch in batches for caption in batch.captions[6:]} == {"sks, a, b, c, d"}


@pytest.mark.parametrize("store", [False, True])
def test_tags_of_editing_models_do_not_fill_the_memory(home: Path, tmp_path: Path, store: bool) -> None:
    kontext = family_of(tiny_transformer_pipeline("flux-kontext"))
    examples = read_edits(home / "dog", [home / "cat"], caption="a, b, c, d", say=lambda _: None)
    options: dict[str, Any] = {"tags": Tags(shuffle=True), "cache_dir": tmp_path if store else None}
    data = EditingDataset(examples, kontext, 32, say=lambda _: None, **options)
    data.prepare()
    seen = [data.batch([epoch * 3]) for epoch in range(5)]
    files = len([file for file in tmp_path.rglob("*") if file.is_file()])
    assert len({batch.captions[0] for batch in seen}) > 2
    seen += [data.batch([epoch * 3]) for epoch in range(5, 9)]
    assert len(data._words) <= 1 and len(data._read) == 3
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == files
    for batch in seen[1:]:
        assert batch.conditions is not None and seen[0].conditions is not None
        assert torch.equal(batch.conditions["reference"], seen[0].conditions["reference"])
        expected = kontext.encode_captions(batch.captions)
        assert all(torch.equal(batch.conditions[name], value) for name, value in expected.items())


def test_masks_that_no_image_has_are_refused(home: Path, family: Any) -> None:
    for source in ("alpha", "files"):
        with pytest.raises(DataError, match=f"loss_masks={source}.*of 3"):
            ImageDataset(examples_in(home / "dog"), family, 16, masks=source, say=lambda _: None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Write loss_masks=alpha"):
        TextToImageSettings(data=str(home / "dog"), masks="alpha")
    with pytest.raises(ValueError, match="tags that vary are encoded at each step"):
        TextToImageSettings(rest_encoders=True, shuffle_tags=True)


def test_a_shift_stays_in_the_part_of_an_expert() -> None:
    for part, shift in (({"least": 0.875}, 3.0), ({"below": 0.875}, 3.0), ({"below": 0.875}, 8.0)):
        times = FlowTimes(shifted_sigmas(1000, 5.0), False, **part)
        found = times.sample(200, torch.Generator().manual_seed(0), NoiseLevels(shift=shift))
        assert bool(((found >= times.least) & (found < times.below)).all()), (part, shift)


def test_rates_of_nothing_are_refused() -> None:
    parameters = {"denoiser.up.w": nn.Parameter(torch.zeros(1))}
    with pytest.raises(RecipeError, match="layer_rates.upp.*whose name contains it.*denoiser.up.w"):
        make_optimizer(parameters, LoopOptions(0.5, steps=1, layer_rates={"upp": 2.0}))
    with pytest.raises(RecipeError, match="no text encoder that is trained"):
        make_optimizer(parameters, LoopOptions(0.5, steps=1, text_encoder_learning_rate=0.1))
    assert set(OPTIMIZER_BYTES) == set(OptimizerName.__args__)  # type: ignore[attr-defined]


def test_an_unfinished_run_is_its_newest_checkpoint_and_its_expert(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = tmp_path / "checkpoints" / "checkpoint-2"
    for folder in (tmp_path / "adapter", newest):
        folder.mkdir(parents=True)
        write_json(folder / "adapter_config.json", {})
    monkeypatch.setattr("orthotune.image.opened_pipeline.newest", lambda folder: newest)
    write_json(tmp_path / "settings.json", {"recipe": "t2i", "expert": "low-noise"})
    assert _adapter_of_run(tmp_path) == newest
    for record in ("stopped.json", "run.json"):
        write_json(tmp_path / record, {})
        assert _adapter_of_run(tmp_path) == tmp_path / "adapter"
        (tmp_path / record).unlink()
    assert expert_of(newest) == expert_of(tmp_path / "adapter") == "low-noise"
    with pytest.raises(ConfigError, match="seed 99999999999999999999"):
        draw(SimpleNamespace(), "a", seeds=99999999999999999999)  # type: ignore[arg-type]
