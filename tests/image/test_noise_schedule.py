"""Noise steps: what is seen, what is predicted, how much a step counts."""

from __future__ import annotations

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
)  # fmt: skip

from orthotune.errors import RecipeError
from orthotune.image.families.noise_schedule import PREDICTIONS, NoiseSchedule, sample_noise

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _left() -> torch.Tensor:
    """Stable Diffusion's alphas_cumprod, in float64 by hand."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


@pytest.mark.parametrize("solver", [PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler])
def test_the_schedule_is_that_of_training_whatever_the_solver(solver):
    found = NoiseSchedule.of(solver(**SD))
    # a product of 1000 float32 numbers
    torch.testing.assert_close(found.alphas_cumprod.double(), _left(), rtol=1e-4, atol=0)
    assert found.prediction == "epsilon"


def test_drawing_leaves_the_schedule_alone():
    scheduler = DDIMScheduler(**SD)
    before = NoiseSchedule.of(scheduler)
    scheduler.set_timesteps(7)
    assert torch.equal(NoiseSchedule.of(scheduler).alphas_cumprod, before.alphas_cumprod)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_seen_and_predicted_are_the_published_formulas(prediction):
    schedule = NoiseSchedule(_left().float(), prediction)
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)
    times = torch.tensor([0, 400, 999])
    a = _left()[times].view(3, 1, 1, 1)
    x, e = clean.double(), noise.double()
    expected = {"epsilon": e, "sample": x, "v_prediction": a.sqrt() * e - (1 - a).sqrt() * x}[prediction]
    # float32, and near t=0 the difference 1 - a of a float32 a
    torch.testing.assert_close(
        schedule.noisy(clean, noise, times).double(), a.sqrt() * x + (1 - a).sqrt() * e, rtol=0, atol=1e-5
    )
    torch.testing.assert_close(schedule.target(clean, noise, times).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_are_those_of_the_paper(prediction, gamma):
    snr = _left() / (1 - _left())
    capped = torch.minimum(snr, torch.tensor(gamma).double())
    expected = {"epsilon": capped / snr, "sample": capped, "v_prediction": capped / (snr + 1)}[prediction]
    found = NoiseSchedule(_left().float(), prediction).weights(torch.arange(1000), gamma)
    # near t=0 the ratio magnifies the rounding of a float32 alpha by 1 / (1 - a) = 1200
    torch.testing.assert_close(found.double(), expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_zero_terminal_snr(prediction):
    schedule = NoiseSchedule.of(DDIMScheduler(**SD, rescale_betas_zero_snr=True, prediction_type=prediction))
    assert schedule.alphas_cumprod[-1] == 0 and schedule.alphas_cumprod[-2] > 0
    clean, noise, last = torch.full((1, 2, 2, 2), 3.0), torch.ones(1, 2, 2, 2), torch.tensor([999])
    assert torch.equal(schedule.noisy(clean, noise, last), noise)
    expected = {"epsilon": noise, "sample": clean, "v_prediction": -clean}[prediction]
    assert torch.equal(schedule.target(clean, noise, last), expected)
    # min(0, gamma) / 0 is 1 in the limit
    assert schedule.weights(last, 5.0).tolist() == [1.0 if prediction == "epsilon" else 0.0]


def test_noise_offset_adds_one_number_to_each_channel():
    like = torch.zeros(2, 3, 4, 5)
    plain = sample_noise(like, torch.Generator().manual_seed(1))
    moved = sample_noise(like, torch.Generator().manual_seed(1), offset=0.1)
    generator = torch.Generator().manual_seed(1)
    torch.randn(like.shape, generator=generator)
    expected = 0.1 * torch.randn(2, 3, 1, 1, generator=generator)
    # one rounding of the sum
    torch.testing.assert_close(moved - plain, expected.expand_as(like), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "scheduler",
    [FlowMatchEulerDiscreteScheduler(), EDMEulerScheduler(), DDIMScheduler(**SD | {"beta_schedule": "linear"})],
)
def test_other_noise_is_refused(scheduler):
    if isinstance(scheduler, DDIMScheduler):
        scheduler.register_to_config(beta_schedule="invented")
    with pytest.raises(RecipeError, match=type(scheduler).__name__):
        NoiseSchedule.of(scheduler)
