"""Contracts of the families of transformers with one text encoder, on tiny pipelines of the real classes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError, RecipeError
from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, merge, trained, unmerge
from orthotune.image.adapter.saved_adapter import load_adapter, save_adapter
from orthotune.image.control.hint_encoder import HintShape
from orthotune.image.families import registry
from orthotune.image.families.family import LossOptions
from orthotune.image.families.registry import family_of, open_family
from orthotune.image.families.unknown_transformer import UnknownTransformer
from orthotune.image.loop.memory_estimate import measure_memory
from orthotune.image.loop.trainee import Trainee
from orthotune.recipes import preset
from orthotune.recipes.subject_settings import SubjectSettings
from tests.support.transformer_pipelines import MAKERS, tiny_transformer_pipeline

PROMPTS, SEEDS = ["a red digit three", "sks", "a green photo of the digit"], [5, 6, 7]
HEIGHT, WIDTH = 32, 64
SMALL = {"steps": 2, "height": HEIGHT, "width": WIDTH, "guidance": 3.0}
KINDS = list(MAKERS)
FILMS = ("wan", "hunyuan-video")


def noise_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2) -> Tensor:
    return torch.randint(256, (count, 3, HEIGHT, WIDTH), generator=noise_of(3), dtype=torch.uint8)


def levels(one: Tensor, other: Tensor) -> int:
    """The largest difference between two images, of 255."""
    return int((one.int() - other.int()).abs().max())


@pytest.fixture
def family(kind: str) -> Any:
    return family_of(tiny_transformer_pipeline(kind))


class Perfect(nn.Module):
    """A denoiser that knows the images: what it should answer follows in float64 from what it is given."""

    def __init__(self, family: Any, clean: Tensor) -> None:
        super().__init__()
        self.pipeline, self.clean, self.kind = family.pipeline, clean.double(), family.name

    def forward(self, rows: Any = None, times: Any = None, captions: Any = None, **given: Any) -> Any:
        height, width = self.clean.shape[-2:]
        if rows is not None:  # Z-Image: lists of images of one frame, times from noise to the image, the other sign
            return ([-one.unsqueeze(1) for one in self._velocity(torch.stack(rows).squeeze(2), 1 - times)],)
        seen, at = given["hidden_states"], given["timestep"]
        if self.kind in ("wan", "sana", "hunyuan-video"):
            return (self._velocity(seen, at / 1000),)
        if self.kind == "auraflow":
            return (self._velocity(seen, at),)
        if self.kind == "lumina2":  # times from noise to the image, the other sign
            return (-self._velocity(seen, 1 - at.double()),)
        if self.kind == "flux2-klein":
            ids = self.pipeline._prepare_latent_ids(self.clean)
            found = self.pipeline._unpack_latents_with_ids(seen, ids, height, width)
            return (self.pipeline._pack_latents(self._velocity(found, at)),)
        shape = (len(seen), self.clean.shape[1], height, width)
        found = self.pipeline._unpack_latents(seen, 2 * height, 2 * width, 2).view(self.clean.shape)
        return (self.pipeline._pack_latents(self._velocity(found, at).view(shape), *shape),)

    def _velocity(self, seen: Tensor, at: Tensor) -> Tensor:
        at = at.double().view(-1, *[1] * (seen.ndim - 1))
        noise = (seen.double() - (1 - at) * self.clean) / at
        return (noise - self.clean).float()


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_denoiser_has_no_loss(family: Any, kind: str) -> None:
    latents = family.encode_images(images(), noise_of())
    assert latents.shape[1:] == family.latent_shape(HEIGHT, WIDTH) and not latents.requires_grad
    conditions = family.encode_captions(["a", "sks digit"])
    assert all(len(tensor) == 2 for tensor in conditions.values())
    loss = family.losses(Perfect(family, latents), latents, conditions, noise_of(), LossOptions())
    assert loss.dtype == torch.float32 and loss.shape == (2,)
    # rounding of what it saw, 1e-7, over the smallest share of noise in it, 0.03 (squared)
    assert loss.max() < 1e-9
    assert family.losses(family.denoiser, latents, conditions, noise_of(), LossOptions()).min() > 1e-3
    with pytest.raises(RecipeError, match="min_snr=5"):
        family.losses(family.denoiser, latents, conditions, noise_of(), LossOptions(min_snr_gamma=5.0))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for key, inner in enumerate(value):
            yield from _flat(inner, f"{name}.{key}")


@pytest.mark.parametrize("kind", KINDS)
def test_training_gives_the_denoiser_what_generation_gives_it(family: Any, kind: str) -> None:
    calls: list[Any] = []
    handle = family.denoiser.register_forward_pre_hook(lambda _, *given: calls.append(given), with_kwargs=True)
    guidance = 1.0 if kind == "hunyuan-video" else 0.0  # an input there, and in training 1
    family.generate(PROMPTS[:1], [1], steps=1, guidance=guidance, height=HEIGHT, width=WIDTH)
    latents = family.encode_images(images(1), noise_of())
    family.losses(family.denoiser, latents, family.encode_captions(PROMPTS[:1]), noise_of(), LossOptions())
    handle.remove()
    theirs, ours = (dict(_flat(call)) for call in calls)
    if kind in ("auraflow", "sana"):  # the latents are given without their name
        theirs[".1.hidden_states"] = theirs.pop(".0.0")
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        assert value.shape == ours[name].shape, name
        changes = name.endswith(("hidden_states", "timestep")) and "encoder" not in name
        if kind == "z-image":  # arguments without names: latents, times, captions
            changes = name.startswith((".0.0", ".0.1"))
        if not changes:  # other noise at another time
            torch.testing.assert_close(value.float(), ours[name].float(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_those_of_the_pipeline_and_do_not_depend_on_the_batch(family: Any, kind: str) -> None:
    state = torch.random.get_rng_state()
    found = family.generate(PROMPTS, SEEDS, **SMALL)
    assert found.shape == (3, 3, HEIGHT, WIDTH) and found.dtype == torch.uint8
    # products of other batch sizes may round otherwise, and a rounded colour may fall on the other side
    assert levels(found, family.generate(PROMPTS, SEEDS, batch_size=2, **SMALL)) <= 1
    assert levels(found[:1], family.generate(PROMPTS[:1], [99], **SMALL)) > 5
    assert torch.equal(state, torch.random.get_rng_state())
    options: dict[str, Any] = {"guidance_scale": 3.0}
    if kind == "qwen-image":
        options = {"true_cfg_scale": 3.0, "negative_prompt": [" "] * 3}
    if kind.startswith(FILMS):
        options["num_frames"] = 1
    if kind == "sana":
        options["use_resolution_binning"] = False
    output = family.pipeline(
        prompt=list(PROMPTS), generator=[noise_of(seed) for seed in SEEDS], output_type="np", num_inference_steps=2,
        height=HEIGHT, width=WIDTH, **options,
    )  # fmt: skip
    theirs = torch.from_numpy(output.frames[:, 0] if kind.startswith(FILMS) else output.images)
    assert levels(found, (theirs * 255).round().to(torch.uint8).permute(0, 3, 1, 2)) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_learns_is_saved_loaded_and_merged(family: Any, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = family.generate(PROMPTS[:1], SEEDS[:1], **SMALL)
    add_adapter(family, AdapterSettings(block_size=4))
    learning = trained(family)
    assert levels(before, family.generate(PROMPTS[:1], SEEDS[:1], **SMALL)) == 0
    latents, conditions = family.encode_images(images(), noise_of()), family.encode_captions(PROMPTS[:2])
    optimizer = torch.optim.AdamW(learning.values(), lr=2e-2, weight_decay=0.0)
    history = []
    for _ in range(6):  # always the same noise, so that the losses compare
        loss = family.losses(family.denoiser, latents, conditions, noise_of(), LossOptions()).mean()
        history.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in learning.values())
        optimizer.step() if len(history) < 6 else None
    assert all(math.isfinite(value) for value in history) and history[-1] < history[0]
    after = family.generate(PROMPTS[:1], SEEDS[:1], **SMALL)
    save_adapter(family, tmp_path)
    again = family_of(tiny_transformer_pipeline(kind))
    load_adapter(again, tmp_path)
    assert levels(after, again.generate(PROMPTS[:1], SEEDS[:1], **SMALL)) == 0
    weights = {name: value.clone() for name, value in again.denoiser.state_dict().items()}
    merge(again)
    assert levels(after, again.generate(PROMPTS[:1], SEEDS[:1], **SMALL)) <= 1  # rounding of merged weights
    unmerge(again)
    assert all(torch.equal(value, weights[name]) for name, value in again.denoiser.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_estimated_before_training(family: Any, kind: str) -> None:
    add_adapter(family, AdapterSettings(block_size=4))
    settings = SubjectSettings(model="m", instance_images="x", instance_prompt="a sks cat", resolution=32, batch_size=1)
    found = measure_memory(family, Trainee(family), settings)
    assert found.trained == 4 * sum(p.numel() for p in trained(family).values()) and found.frozen > found.trained


def test_a_saved_pipeline_is_opened_as_its_family(tmp_path: Path) -> None:
    for kind in ("z-image", "wan"):
        tiny_transformer_pipeline(kind).save_pretrained(tmp_path / kind)
        family = open_family(tmp_path / kind, torch.bfloat16)
        assert family.name == kind and family.dtype == torch.bfloat16
        loss = family.losses(family.denoiser, family.encode_images(images(), noise_of()),
                             family.encode_captions(["a", "b"]), noise_of(), LossOptions())  # fmt: skip
        assert loss.isfinite().all()


def test_an_expert_is_trained_at_its_own_times() -> None:
    both, one = (family_of(tiny_transformer_pipeline(kind)) for kind in ("wan-2.2", "wan"))
    assert both.times.sample(200, noise_of()).min() >= 0.875 > one.times.sample(200, noise_of()).min()
    pipeline = tiny_transformer_pipeline("wan")
    pipeline.register_to_config(expand_timesteps=True)
    with pytest.raises(RecipeError, match="times of their own"):
        family_of(pipeline)


@pytest.mark.parametrize("kind", ["flux2-klein", "z-image", "qwen-image", "chroma", "wan"])
@pytest.mark.parametrize("recipe", ["subject", "t2i"])
def test_a_family_has_presets_that_name_their_source(kind: str, recipe: str) -> None:
    found = preset.read(kind, recipe)
    assert "for=comfyui" in found.reason and any(word in found.reason for word in ("diffusers", "sd-scripts", "musubi"))


@pytest.mark.parametrize("kind", ["lumina2", "auraflow", "sana"])
def test_a_plain_flow_without_a_family_is_trained_as_its_family_would(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = family_of(tiny_transformer_pipeline(kind))
    monkeypatch.setattr(registry, "FAMILIES", tuple(one for one in registry.FAMILIES if one.name != kind))
    monkeypatch.setattr(UnknownTransformer, "multiple", family.multiple)
    if kind == "sana":
        monkeypatch.setattr(UnknownTransformer, "pixels_per_latent", family.pixels_per_latent)
        monkeypatch.setattr(UnknownTransformer, "latent_shape", lambda _, h, w: (4, h // 2, w // 2))
    with pytest.warns(UserWarning, match="has no family here and is tried as a plain flow"):
        tried = family_of(tiny_transformer_pipeline(kind))
    assert isinstance(tried, UnknownTransformer) and set(tried.attention) == set(family.attention)
    latents = family.encode_images(images(), noise_of())
    times = torch.tensor([0.3, 0.8])
    found, expected = (
        one.velocity(one.denoiser, latents, times, one.encode_captions(["a", "a red digit"])) for one in (tried, family)
    )
    assert torch.equal(found, expected)
    if kind != "sana":  # whose decoder is no usual one
        assert levels(tried.generate(PROMPTS[:1], [1], **SMALL), family.generate(PROMPTS[:1], [1], **SMALL)) == 0


def test_a_pipeline_that_packs_its_latents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FAMILIES", tuple(one for one in registry.FAMILIES if one.name != "chroma"))
    with pytest.raises(RecipeError, match=r"ChromaPipeline, which is not a supported family.*packed.*one of .*sd3"):
        family_of(tiny_transformer_pipeline("chroma"))


@pytest.mark.parametrize("kind", ["z-image", "wan"])
def test_control_images_are_refused_in_words(family: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"control images for a model of {kind}.*stable-diffusion, sdxl, sd3 or flux"):
        HintShape.of(family)
