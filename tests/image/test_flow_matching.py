"""The times of flow matching, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, FluxPipeline

from orthotune.errors import RecipeError
from orthotune.image.families.family import LossOptions
from orthotune.image.families.flow_matching import FlowTimes
from orthotune.image.families.flux import pack, unpack
from orthotune.image.families.registry import open_family

_COUNT = 20_000


@pytest.mark.parametrize(("shift", "dynamic", "used"), [(3.0, False, 3.0), (3.0, True, 1.0), (1.0, False, 1.0)])
def test_times_are_shifted_as_the_scheduler_says(shift, dynamic, used):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift, use_dynamic_shifting=dynamic)
    before = FlowTimes.of(scheduler, True).sigmas
    plain = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    expected = used * plain / (1 + (used - 1) * plain)
    torch.testing.assert_close(before.double(), expected, rtol=1e-6, atol=0)  # float32
    scheduler.set_timesteps(4, **({"mu": 0.7} if dynamic else {}))
    assert torch.equal(FlowTimes.of(scheduler, True).sigmas, before), "drawing pictures changed the training"


def test_logit_normal_times_have_the_published_density():
    found = FlowTimes.of(FlowMatchEulerDiscreteScheduler(), True).sample(_COUNT, torch.Generator().manual_seed(0))
    logits = torch.logit(found.double().clamp(max=0.9995))
    # five standard errors of a mean and of a deviation of 20000 numbers, and the grid of 1/1000
    assert abs(logits.mean()) < 0.04 and abs(logits.std() - 1) < 0.03


def test_even_times_are_even():
    found = FlowTimes.of(FlowMatchEulerDiscreteScheduler(), False).sample(_COUNT, torch.Generator().manual_seed(0))
    quarters = torch.histc(found, 4, 0, 1) / _COUNT
    assert (quarters - 0.25).abs().max() < 0.016  # five standard errors: sqrt(0.25 * 0.75 / 20000) * 5


def test_a_schedule_of_betas_is_refused():
    with pytest.raises(RecipeError, match="DDIMScheduler.*flow matching"):
        FlowTimes.of(DDIMScheduler(), True)


@pytest.mark.parametrize("options", [LossOptions(min_snr_gamma=5.0), LossOptions(noise_offset=0.1)])
@pytest.mark.parametrize("kind", ["sd3", "flux-schnell"])
def test_weights_of_noise_steps_are_refused(tiny, kind, options):
    family = open_family(tiny(kind))
    latents = torch.zeros(1, 4, 8, 8)
    with pytest.raises(RecipeError, match="flow matching"):
        family.losses(family.denoiser, latents, family.encode_captions(["a"]), torch.Generator(), options)


def test_packing_is_that_of_diffusers():
    latents = torch.randn(2, 3, 6, 4)
    packed = pack(latents)
    assert torch.equal(packed, FluxPipeline._pack_latents(latents, 2, 3, 6, 4))
    assert torch.equal(unpack(packed, 6, 4), latents)
