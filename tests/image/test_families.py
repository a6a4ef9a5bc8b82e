"""Contracts that every family keeps, on tiny pipelines of the real classes."""

from __future__ import annotations

import math
from contextlib import contextmanager

import pytest
import torch
from diffusers import FluxPipeline
from torch import nn

from orthotune.errors import DataError, RecipeError
from orthotune.image.adapter.adapters import add_adapter, trained
from orthotune.image.adapter.model_spec import ModelSpec
from orthotune.image.adapter.settings import AdapterSettings
from orthotune.image.families.family import LossOptions
from orthotune.image.families.noise_schedule import PREDICTIONS
from orthotune.image.families.registry import open_family
from tests.support.tiny_pipelines import FAMILIES, KINDS, LATENTS, known_of

PROMPTS, SEEDS = ["a red digit three", "sks", "a green photo of the digit"], [5, 6, 7]
SMALL = {"steps": 2, "height": 16, "width": 24}


def noise_of(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count=2, height=16, width=24):
    return torch.randint(256, (count, 3, height, width), generator=noise_of(3), dtype=torch.uint8)


def levels(one, other):
    """The largest difference between two pictures, of 255."""
    return (one.int() - other.int()).abs().max().item()


class Perfect(nn.Module):
    """A denoiser that knows the pictures: it works out in float64, from what it is given, what it should answer."""

    def __init__(self, family, latents):
        super().__init__()
        self.family, self.clean = family, latents.double()

    def forward(self, noisy=None, times=None, *, hidden_states=None, timestep=None, return_dict=False, **told):
        scheduler = self.family.pipeline.scheduler
        if noisy is not None:  # a UNet
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
            a = torch.cumprod(1 - betas, 0)[times].view(-1, 1, 1, 1)
            noise = (noisy.double() - a.sqrt() * self.clean) / (1 - a).sqrt()
            velocity = a.sqrt() * noise - (1 - a).sqrt() * self.clean
            kind = scheduler.config.prediction_type
            return (({"epsilon": noise, "sample": self.clean, "v_prediction": velocity}[kind]).float(),)
        packed = hidden_states.ndim == 3
        seen = hidden_states
        if packed:
            height, width = self.clean.shape[-2:]
            seen = FluxPipeline._unpack_latents(seen, 2 * height, 2 * width, 2)
        at = (timestep if packed else timestep / 1000).double().view(-1, 1, 1, 1)
        velocity = (seen.double() - (1 - at) * self.clean) / at - self.clean
        if packed:
            velocity = FluxPipeline._pack_latents(velocity, *velocity.shape)
        return (velocity.float(),)


@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [(kind, {}) for kind in KINDS] + [("sd21", {"prediction_type": kind}) for kind in PREDICTIONS],
)
def test_a_perfect_denoiser_has_no_loss(tiny, kind, scheduler):
    family = open_family(tiny(kind, **scheduler))
    latents = family.encode_images(pictures(), noise_of())
    told = family.encode_captions(["a", "sks"])
    perfect = Perfect(family, latents)
    loss = family.losses(perfect, latents, told, noise_of(), LossOptions())
    assert loss.dtype == torch.float32 and loss.shape == (2,)
    # rounding of what it saw, 1e-7, over the smallest share of noise in it, 0.03 (squared); a sample has none
    assert loss.max() < 1e-9
    assert family.losses(family.denoiser, latents, told, noise_of(), LossOptions()).min() > 1e-3


@contextmanager
def what_is_told(module, found):
    """Keep the keyword arguments that a denoiser is called with."""
    handle = module.register_forward_pre_hook(lambda _, args, named: found.append((args, named)), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def flat(told):
    """Tensors by name, those in dictionaries too."""
    named = {key: value for key, value in told.items() if value is not None}
    return {
        k: v for key, value in named.items() for k, v in (value if isinstance(value, dict) else {key: value}).items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_training_tells_the_denoiser_what_drawing_tells_it(tiny, kind):
    family = open_family(tiny(kind))
    drawing, training = [], []
    with what_is_told(family.denoiser, drawing):
        family.generate(PROMPTS[:1], [1], steps=1, guidance=1.0, height=16, width=24)
    with what_is_told(family.denoiser, training):
        latents = family.encode_images(pictures(1), noise_of())
        family.losses(family.denoiser, latents, family.encode_captions(PROMPTS[:1]), noise_of(), LossOptions())
    (args, told), (own_args, own) = drawing[0], training[0]
    theirs, ours = flat(told), flat(own)
    assert len(args) == len(own_args)
    for key in ("timestep", "hidden_states", "return_dict", "joint_attention_kwargs", "cross_attention_kwargs"):
        left, right = theirs.pop(key, None), ours.pop(key, None)
        if isinstance(left, torch.Tensor):  # other noise at another time, of the same shape and on the same scale
            assert left.shape == right.shape and (key != "timestep" or (right > 1) == (left > 1))
    assert theirs.keys() == ours.keys()
    for key, value in theirs.items():
        assert torch.equal(value.float(), ours[key].float()), key


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_depend_on_the_seed_and_not_on_the_batch(tiny, kind):
    family = open_family(tiny(kind))
    family.denoiser.train()
    module = next(m for m in family.denoiser.modules() if isinstance(m, nn.Dropout))
    module.eval()
    state = torch.random.get_rng_state()
    whole = family.generate(PROMPTS, SEEDS, **SMALL)
    assert whole.shape == (3, 3, 16, 24) and whole.dtype == torch.uint8
    # products of other batch sizes may round otherwise, and a rounded colour may fall on the other side
    assert levels(whole, family.generate(PROMPTS, SEEDS, batch_size=2, **SMALL)) <= 1
    assert levels(whole[2:], family.generate(PROMPTS[2:], SEEDS[2:], **SMALL)) <= 1
    assert levels(whole[:1], family.generate(PROMPTS[:1], [99], **SMALL)) > 5
    assert torch.equal(state, torch.random.get_rng_state())
    assert family.denoiser.training and not module.training, "the modes are left as they were"


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_those_of_the_pipeline(tiny, kind):
    family = open_family(tiny(kind))
    options = {"guidance_scale": 3.0, "num_inference_steps": 2, "height": 16, "width": 24}
    if kind.startswith("flux"):
        options["max_sequence_length"] = 512 if kind == "flux-dev" else 256
    theirs = family.pipeline(
        PROMPTS[:2], generator=[noise_of(seed) for seed in SEEDS[:2]], output_type="np", **options
    ).images
    ours = family.generate(PROMPTS[:2], SEEDS[:2], guidance=3.0, **SMALL)
    assert levels(ours, torch.from_numpy(theirs * 255).round().to(torch.uint8).permute(0, 3, 1, 2)) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_scaled_and_shifted_as_the_vae_says(tiny, kind):
    family = open_family(tiny(kind))
    vae, seen = family.pipeline.vae, pictures()
    latents = family.encode_images(seen, noise_of(4))
    with torch.no_grad():
        found = vae.encode(seen.float() / 127.5 - 1).latent_dist
    sample = found.mean.double() + found.std.double() * torch.randn(found.mean.shape, generator=noise_of(4)).double()
    shift, scale = known_of(kind, LATENTS, (0.0, 0.18215))
    torch.testing.assert_close(latents.double(), (sample - shift) * scale, rtol=0, atol=1e-6)  # float32
    assert latents.shape[2:] == (16 // family.pixels_per_latent, 24 // family.pixels_per_latent)
    assert not latents.requires_grad


TRAINED = {"oft": {"r": 2}, "full": {}, "lora": {"lora_rank": 2}}


@pytest.mark.parametrize(
    ("kind", "method", "dtype"),
    [(kind, method, torch.float32) for kind in FAMILIES for method in TRAINED]
    + [(kind, "oft", torch.bfloat16) for kind in FAMILIES]
    + [("sd15", "full", torch.bfloat16), ("flux-dev", "lora", torch.bfloat16)],
)
def test_five_steps_learn_and_change_exactly_what_is_trained(tiny, kind, method, dtype):
    family = open_family(tiny(kind), dtype)
    torch.manual_seed(0)
    add_adapter(family, AdapterSettings(method, text_encoders=True, **TRAINED[method]))
    learning = trained(family)
    assert {p.dtype for p in learning.values()} == {torch.float32}
    everything = {f"{c}.{n}": p for c, m in family.modules().items() for n, p in m.named_parameters()}
    assert {p.dtype for name, p in everything.items() if name not in learning} == {dtype}
    before = {name: p.detach().clone() for name, p in everything.items()}
    latents = family.encode_images(pictures(), noise_of())
    optimizer = torch.optim.AdamW(learning.values(), lr=2e-2, weight_decay=0.0)
    history = []
    for _ in range(6):  # always the same noise, so that the losses compare
        loss = family.losses(
            family.denoiser, latents, family.encode_captions(PROMPTS[:2]), noise_of(), LossOptions()
        ).mean()
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step() if len(history) < 6 else None
    assert all(math.isfinite(value) for value in history) and history[-1] < history[0]
    changed = {name for name, p in everything.items() if not torch.equal(p, before[name])}
    assert changed == set(learning)


@pytest.mark.parametrize("kind", FAMILIES)
def test_captions_carry_a_gradient_only_to_encoders_that_learn(tiny, kind):
    family = open_family(tiny(kind))
    assert not any(tensor.requires_grad for tensor in family.encode_captions(["a"]).values())
    add_adapter(family, AdapterSettings(r=2, text_encoders=True))
    told = family.encode_captions(["a", "sks"])
    assert any(tensor.requires_grad for tensor in told.values())
    assert all(len(tensor) == 2 for tensor in told.values())
    with torch.no_grad():
        assert not any(tensor.requires_grad for tensor in family.encode_captions(["a"]).values())


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_is_wrong_is_said(tiny, kind):
    family = open_family(tiny(kind))
    with pytest.raises(RecipeError, match=f"multiples of {family.divisor}"):
        family.encode_images(pictures(1, 16, 26 if kind != "flux-dev" else 25), noise_of())
    with pytest.raises(RecipeError, match="multiples"):
        family.generate(["a"], [1], height=17, width=16)
    with pytest.raises(DataError, match="uint8"):
        family.encode_images(torch.zeros(1, 3, 16, 16), noise_of())
    with pytest.raises(DataError, match="2 seeds"):
        family.generate(["a"], [1, 2])
    with pytest.raises(DataError, match="none"):
        family.encode_captions([])


def test_the_sizes_that_sdxl_reads_can_be_given(tiny):
    family = open_family(tiny("sdxl"))
    told = family.encode_captions(["a"])
    latents = family.encode_images(pictures(1), noise_of())
    sizes = family.size_conditions(torch.tensor([[600, 800]]), torch.tensor([[0, 4]]), (16, 24))
    seen = []
    with what_is_told(family.denoiser, seen):
        family.losses(family.denoiser, latents, told | sizes, noise_of(), LossOptions())
    assert seen[0][1]["added_cond_kwargs"]["time_ids"].tolist() == [[600, 800, 0, 4, 16, 24]]
    assert open_family(tiny("sd15")).size_conditions(torch.ones(1, 2), torch.ones(1, 2), (16, 16)) == {}


def test_flux_is_told_no_guidance_in_training(tiny):
    for kind, expected in (("flux-dev", [1.0, 1.0]), ("flux-schnell", None)):
        family, seen = open_family(tiny(kind)), []
        latents = family.encode_images(pictures(), noise_of())
        with what_is_told(family.denoiser, seen):
            family.losses(family.denoiser, latents, family.encode_captions(["a", "b"]), noise_of(), LossOptions())
        told = seen[0][1]["guidance"]
        assert (told if told is None else told.tolist()) == expected


def test_min_snr_weights_the_loss_of_each_picture(tiny):
    family = open_family(tiny("sd21"))
    latents, told = family.encode_images(pictures(), noise_of()), family.encode_captions(["a", "b"])
    plain = family.losses(family.denoiser, latents, told, noise_of(1), LossOptions())
    weighted = family.losses(family.denoiser, latents, told, noise_of(1), LossOptions(min_snr_gamma=5.0))
    times = family.schedule.sample_times(2, noise_of(1))
    left = family.schedule.alphas_cumprod[times].double()
    snr = left / (1 - left)
    torch.testing.assert_close(weighted.double(), plain.double() * snr.clamp(max=5) / (snr + 1), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("pipeline", "fields", "expected"),
    [("sd15", {}, "stable-diffusion-v1"), ("sd21", {}, "stable-diffusion-v2-768-v"),
     ("sd21", {"prediction_type": "epsilon"}, "stable-diffusion-v2-512"), ("sdxl", {}, "stable-diffusion-xl-v1-base")],
)  # fmt: skip
def test_the_header_names_the_generation_of_the_base(tiny, pipeline, fields, expected):
    spec = ModelSpec(open_family(tiny(pipeline, **fields)).generation, "oft", "base")
    assert spec.entries({})["modelspec.architecture"] == f"{expected}/oft"


def test_a_half_precision_vae_that_overflows_stays_float32(tiny):
    family = open_family(tiny("sd15"), torch.float16)
    assert family.pipeline.vae.dtype == torch.float32 and family.dtype == torch.float16
    assert family.pipeline.text_encoder.dtype == torch.float16


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_gpu_draws_and_learns_the_same(tiny, kind):
    here, there = open_family(tiny(kind)), open_family(tiny(kind), device="cuda")
    losses = []
    for family in (here, there):
        add_adapter(family, AdapterSettings(r=2, text_encoders=True))
        latents = family.encode_images(pictures(), noise_of())
        told = family.encode_captions(PROMPTS[:2])
        losses.append(family.losses(family.denoiser, latents, told, noise_of(), LossOptions()))
        losses[-1].mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained(family).values())
    # TF32 in convolutions, through a model of few layers
    torch.testing.assert_close(losses[1].cpu(), losses[0], rtol=5e-3, atol=1e-3)
    assert levels(there.generate(PROMPTS, SEEDS, **SMALL), here.generate(PROMPTS, SEEDS, **SMALL)) <= 3
