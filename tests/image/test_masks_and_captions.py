"""Masks of the loss, captions that vary, noise levels and learning rates: each against a value by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from orthotune.errors import DataError, RecipeError
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.caption_tags import Tags
from orthotune.image.data.captions import read_examples
from orthotune.image.families.family import LossOptions
from orthotune.image.families.flow_matching import FlowTimes
from orthotune.image.families.noise_levels import NoiseLevels, shifted_sigmas
from orthotune.image.families.noise_schedule import NoiseSchedule
from orthotune.image.families.registry import family_of
from orthotune.image.families.weighted_error import squared_error
from orthotune.image.loop.optimizer import make_optimizer
from orthotune.image.loop.options import LoopOptions
from orthotune.recipes.text_to_image import TextToImageSettings
from tests.support.tiny_pipelines import tiny_pipeline


@pytest.fixture(scope="module")
def family() -> Any:
    return family_of(tiny_pipeline("sd15"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that is opaque on its left half, one with a mask beside it, one without any."""
    home = tmp_path_factory.mktemp("masked")
    pixels = np.random.default_rng(0).integers(256, size=(16, 24, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[:, :12, 3] = 255
    Image.fromarray(pixels).save(home / "half.png")
    for name in ("beside", "none"):
        Image.fromarray(pixels[..., :3]).save(home / f"{name}.png")
    mask = np.zeros((16, 24), np.uint8)
    mask[:8] = 255
    Image.fromarray(mask).save(home / "beside.mask.png")
    return home


def test_a_mask_weighs_the_error() -> None:
    guess, target = torch.randn(2, 3, 4, 6), torch.randn(2, 3, 4, 6)
    error = (guess - target).square()
    mask = torch.zeros(2, 1, 8, 12)
    mask[0, :, :4], mask[1] = 1, 0.5
    found = squared_error(guess, target, mask)
    # Means of at most 72 float32 numbers in another order.
    torch.testing.assert_close(found, torch.stack([error[0, :, :2].mean(), error[1].mean()]), rtol=1e-6, atol=0)
    assert squared_error(guess, target, 0 * mask).tolist() == [0, 0]
    film = squared_error(guess[:, :, None].expand(-1, -1, 5, -1, -1), target[:, :, None], mask)
    torch.testing.assert_close(film, found, rtol=1e-6, atol=0)


def test_masks_are_read_cropped_and_no_images(folder: Path, family: Any) -> None:
    examples = read_examples(folder, caption="a digit", say=lambda _: None)
    assert [one.image.name for one in examples] == ["beside", "half", "none"]
    for source, number in (("alpha", 1), ("files", 0)):
        data = ImageDataset(examples, family, 16, masks=source, unmasked=0.25, say=lambda _: None)  # type: ignore[arg-type]
        mask = data.batch([0, 1, 2]).mask
        assert mask is not None and mask.shape == (3, 1, 16, 16)
        others = [index for index in range(3) if index != number]
        assert all((mask[index] == 1).all() for index in others)
        # The centre of 16 x 24: 8 of the 12 opaque columns, or all 8 light rows.
        part = mask[number, 0, :, :8] if source == "alpha" else mask[number, 0, :8]
        rest = mask[number, 0, :, 8:] if source == "alpha" else mask[number, 0, 8:]
        assert (part == 1).all() and (rest == 0.25).all()
    assert ImageDataset(examples, family, 16, say=lambda _: None).batch([0]).mask is None


def test_a_mask_of_another_size_is_refused(folder: Path, family: Any, tmp_path: Path) -> None:
    Image.open(folder / "none.png").save(tmp_path / "a.png")
    Image.new("L", (5, 7)).save(tmp_path / "a-masklabel.png")
    data = ImageDataset(read_examples(tmp_path, caption="a"), family, 16, masks="files", say=lambda _: None)
    with pytest.raises(DataError, match="the mask of image a. Found: 5 x 7 pixels. Needed: 24 x 16"):
        data.batch([0])


def test_what_lies_outside_of_a_mask_teaches_nothing(family: Any) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    conditions = family.encode_captions(["a digit"])
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1

    def loss(wrong: slice) -> float:
        def denoiser(noisy: torch.Tensor, times: Any, **inputs: Any) -> list[torch.Tensor]:
            found = torch.zeros_like(noisy)
            found[..., wrong] = 1e3
            return [found]

        options = LossOptions(mask=mask)
        return float(family.losses(denoiser, latents, conditions, torch.Generator().manual_seed(1), options))

    assert loss(slice(4, 8)) < 10 < loss(slice(0, 4))


def test_tags_are_shuffled_dropped_and_the_first_ones_stay(folder: Path, family: Any) -> None:
    caption = "sks digit, red, on grass, small"
    tags = Tags(shuffle=True, keep=1, drop=0.3)
    seen = {tags.shuffled(caption, 0, index) for index in range(60)}
    assert len(seen) > 10 and all(one.split(", ")[0] == "sks digit" for one in seen)
    assert {tag for one in seen for tag in one.split(", ")} == set(caption.split(", "))
    counts = [one.count(",") for one in (tags.shuffled(caption, 0, index) for index in range(400))]
    assert sum(counts) / 400 == pytest.approx(3 * 0.7, abs=0.15)  # three times the deviation of the mean
    assert Tags().shuffled("a,  b", 0, 1) == "a,  b" and tags.shuffled(caption, 0, 7) == tags.shuffled(caption, 0, 7)
    examples = read_examples(folder, caption=caption, say=lambda _: None)
    data = ImageDataset(examples, family, 16, tags=Tags(shuffle=True), say=lambda _: None)
    data.prepare()
    batches = [data.batch([0, 1 + 3 * epoch]) for epoch in range(3)]
    for batch in batches:
        expected = family.encode_captions(batch.captions)["encoder_hidden_states"]
        assert batch.conditions is not None and torch.equal(batch.conditions["encoder_hidden_states"], expected)
    assert len({batch.captions[1] for batch in batches}) > 1


def test_noise_levels_by_hand() -> None:
    def noise() -> torch.Generator:
        return torch.Generator().manual_seed(0)

    times = FlowTimes(shifted_sigmas(1000, 1.0), logit_normal=False)
    assert torch.equal(times.sample(50, noise(), NoiseLevels(shift=1.0)), times.sample(50, noise()))
    plain, shifted = times.sample(50, noise()), times.sample(50, noise(), NoiseLevels(shift=3.0))
    torch.testing.assert_close(shifted, 3 * plain / (1 + 2 * plain), rtol=1e-6, atol=0)
    late = times.sample(500, noise(), NoiseLevels("logit-normal", mean=1.5))
    assert late.median() == pytest.approx(torch.tensor(1.5).sigmoid().item(), abs=0.03)  # 500 draws of deviation 0.15
    narrow = times.sample(500, noise(), NoiseLevels("uniform", least=0.2, most=0.4))
    assert 0.2 <= narrow.min() < 0.21 and 0.39 < narrow.max() <= 0.4 + 1e-3
    schedule = NoiseSchedule(torch.linspace(0.99, 0.01, 100), "epsilon")
    steps = schedule.sample_times(500, noise(), NoiseLevels(most=0.5))
    assert steps.min() == 0 and steps.max() == 49
    assert torch.equal(schedule.sample_times(9, noise()), torch.randint(100, (9,), generator=noise()))


def test_rates_of_layers_and_text_encoders() -> None:
    parameters = {name: nn.Parameter(torch.zeros(1)) for name in
                  ("denoiser.up.0.w", "denoiser.down.0.w", "text_encoders.text_encoder.up.w")}  # fmt: skip
    options = LoopOptions(0.5, steps=1, text_encoder_learning_rate=0.1, layer_rates={"up.": 2.0})
    optimizer = make_optimizer(parameters, options)
    found = {name: group["factor"] for group in optimizer.param_groups for name, one in parameters.items()
             if any(one is other for other in group["params"])}  # fmt: skip
    assert found == pytest.approx({"denoiser.up.0.w": 2.0, "denoiser.down.0.w": 1.0,
                                   "text_encoders.text_encoder.up.w": 0.4})  # fmt: skip
    with pytest.raises(RecipeError, match="optimizer_options.*bets.*arguments of AdamW"):
        make_optimizer(parameters, LoopOptions(0.5, steps=1, optimizer_options={"bets": 1}))


def test_settings_that_mean_nothing_are_refused(family: Any) -> None:
    for fields, message in (
        ({"keep_tags": 1}, "captions that do not vary"),
        ({"unmasked": 0.5}, "no meaning without loss_masks"),
        ({"timestep_mean": 1.0}, "without timesteps=logit-normal"),
        ({"timestep_range": [0.5, 0.5]}, "no range inside 0..1"),
        ({"text_encoder_learning_rate": 1e-5}, "that are not adapted"),
        ({"layer_rates": {"up": -1.0}}, "no factor above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            TextToImageSettings(**fields)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="flow_shift=3.*Needed: a model of flow matching"):
        family.check_options(LossOptions(levels=NoiseLevels(shift=3.0)))
    assert TextToImageSettings(optimizer="prodigy").learning_rate == 1.0
    assert not {"loss_masks", "timesteps", "layer_rates", "held_out"} & TextToImageSettings().record().keys()
