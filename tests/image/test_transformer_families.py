"""Contracts of the families of transformers and of editing models, on tiny pipelines of the real classes."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError, RecipeError
from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, merge, trained, unmerge
from orthotune.image.adapter.saved_adapter import expert_of, load_adapter, save_adapter
from orthotune.image.control.hint_encoder import HintShape
from orthotune.image.data.batch import Batch, Sources
from orthotune.image.families import registry
from orthotune.image.families.family import LossOptions
from orthotune.image.families.flux import pack, unpack
from orthotune.image.families.ltx2 import WITHOUT_FURTHER_GUIDANCE
from orthotune.image.families.registry import family_of, open_family
from orthotune.image.families.unknown_transformer import UnknownTransformer
from orthotune.image.loop.memory_estimate import measure_memory
from orthotune.image.loop.trainee import Trainee
from orthotune.recipes import preset
from orthotune.recipes.subject_settings import SubjectSettings
from tests.support.editing_pipelines import EDITING, as_the_pipeline_takes_them, sources_of
from tests.support.saved_tensors import really_saved
from tests.support.transformer_pipelines import MAKERS, tiny_transformer_pipeline

PROMPTS, SEEDS = ["a red digit three", "sks", "a green photo of the digit"], [5, 6, 7]
HEIGHT, WIDTH = 32, 64
SMALL = {"steps": 2, "height": HEIGHT, "width": WIDTH, "guidance": 3.0}
KINDS = [*MAKERS, *EDITING]
FILMS = ("wan", "hunyuan-video", "ltx")
#: Frames of a clip: possible for VAEs that join 4 or 8; HunyuanVideo 1.5, whose VAE joins 2 here, attends with a
#: mask of all pairs of tokens.
CLIPS = {kind: 3 if kind == "hunyuan-video-15" else 9 for kind in MAKERS if kind.startswith(FILMS)}
WITH_CLIPS = [(kind, 1) for kind in KINDS] + list(CLIPS.items())


def noise_of(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 2, frames: int = 1) -> Tensor:
    """Images, or clips of several frames."""
    shape = (count, 3, HEIGHT, WIDTH) if frames == 1 else (count, 3, frames, HEIGHT, WIDTH)
    return torch.randint(256, shape, generator=noise_of(3), dtype=torch.uint8)


def levels(one: Tensor, other: Tensor) -> int:
    """The largest difference between two images, of 255."""
    return int((one.int() - other.int()).abs().max())


@pytest.fixture
def family(kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    found = family_of(tiny_transformer_pipeline(kind))
    if kind.startswith("qwen-image-edit"):  # which brings every image to a million pixels, a minute for these tests
        small = (WIDTH, HEIGHT) if kind.endswith("plus") else (WIDTH, HEIGHT, None)
        pipelines = sys.modules[type(found.pipeline).__module__]
        monkeypatch.setattr(pipelines, "calculate_dimensions", lambda area, ratio: small)
    return found


def conditions_of(family: Any, captions: list[str]) -> dict[str, Tensor]:
    """What the denoiser reads of captions, and of images to edit where it reads them."""
    sources = sources_of(family, len(captions), HEIGHT, WIDTH)
    found: dict[str, Tensor] = family.encode_captions(captions, sources)
    return found if sources is None else found | family.encode_sources(sources)


def drawn(family: Any, prompts: list[str], seeds: list[int], **more: Any) -> Tensor:
    found: Tensor = family.generate(
        prompts, seeds, sources=sources_of(family, len(prompts), HEIGHT, WIDTH), **SMALL | more
    )
    return found


class Perfect(nn.Module):
    """A denoiser that knows the images: what it should answer follows in float64 from what it is given."""

    def __init__(self, family: Any, clean: Tensor) -> None:
        super().__init__()
        self.pipeline, self.clean, self.kind = family.pipeline, clean.double(), family.name

    def forward(self, rows: Any = None, times: Any = None, captions: Any = None, **given: Any) -> Any:
        height, width = self.clean.shape[-2:]
        if self.kind == "sdxl-inpainting":  # a UNet that predicts the noise; of its channels the first four are noisy
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
            a = torch.cumprod(1 - betas, 0)[times].view(-1, 1, 1, 1)
            return (((rows[:, :4].double() - a.sqrt() * self.clean) / (1 - a).sqrt()).float(),)
        if rows is not None:  # Z-Image: lists of images of one frame, times from noise to the image, the other sign
            return ([-one.unsqueeze(1) for one in self._velocity(torch.stack(rows).squeeze(2), 1 - times)],)
        seen, at = given["hidden_states"], given.get("timestep")
        if self.kind == "hidream":  # the other sign
            return (-self._velocity(seen, given["timesteps"] / 1000),)
        if self.kind in ("wan", "sana", "hunyuan-video", "hunyuan-video-15"):  # 1.5 also reads an empty first frame
            return (self._velocity(seen[:, : self.clean.shape[1]], at / 1000),)
        if self.kind == "ideogram4":  # words and image are one sequence; times from noise to the image, the other sign
            found = seen[:, -height * width :].mT.view(self.clean.shape)
            answer = torch.full_like(seen, torch.nan)
            answer[:, -height * width :] = -self._velocity(found, 1 - at.double()).flatten(2).mT
            return (answer,)
        if self.kind in ("ltx-video", "ltx-2"):
            found = seen.mT.view(self.clean.shape)
            return (self._velocity(found, at / 1000).flatten(2).mT,)
        if self.kind == "auraflow":
            return (self._velocity(seen, at),)
        if self.kind == "lumina2":  # times from noise to the image, the other sign
            return (-self._velocity(seen, 1 - at.double()),)
        if self.kind == "flux2-klein":
            ids = self.pipeline._prepare_latent_ids(self.clean)
            found = self.pipeline._unpack_latents_with_ids(seen, ids, height, width)
            return (self.pipeline._pack_latents(self._velocity(found, at)),)
        # Images to edit are further tokens, or further channels.
        seen = seen[:, : height * width // 4, : 4 * self.clean.shape[1]]
        shape = (len(seen), self.clean.shape[1], height, width)
        found = unpack(seen, height, width).view(self.clean.shape)
        return (pack(self._velocity(found, at).view(shape)),)

    def _velocity(self, seen: Tensor, at: Tensor) -> Tensor:
        at = at.double().view(-1, *[1] * (seen.ndim - 1))
        noise = (seen.double() - (1 - at) * self.clean) / at
        return (noise - self.clean).float()


@pytest.mark.parametrize(("kind", "frames"), WITH_CLIPS)
def test_a_perfect_denoiser_has_no_loss(family: Any, kind: str, frames: int) -> None:
    latents = family.encode_images(images(2, frames), noise_of())
    assert latents.shape[1:] == family.latent_shape(HEIGHT, WIDTH, frames) and not latents.requires_grad
    conditions = conditions_of(family, ["a", "sks digit"])
    assert all(len(tensor) == 2 for tensor in conditions.values())
    loss = family.losses(Perfect(family, latents), latents, conditions, noise_of(), LossOptions())
    assert loss.dtype == torch.float32 and loss.shape == (2,)
    # rounding of what it saw, 1e-7, over the smallest share of noise in it, 0.03 (squared)
    assert loss.max() < 1e-9
    assert family.losses(family.denoiser, latents, conditions, noise_of(), LossOptions()).min() > 1e-3
    if kind != "sdxl-inpainting":
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


@pytest.mark.parametrize(("kind", "frames"), WITH_CLIPS)
def test_training_gives_the_denoiser_what_generation_gives_it(family: Any, kind: str, frames: int) -> None:
    calls: list[Any] = []
    handle = family.denoiser.register_forward_pre_hook(lambda _, *given: calls.append(given), with_kwargs=True)
    # 1 is an input in hunyuan-video, and no guidance in 1.5 and ideogram4
    guidance = 1.0 if kind.startswith(("hunyuan-video", "ideogram4")) else 0.0
    if family.reads:  # the pipeline's own way from pictures
        as_drawn(family, 0, num_inference_steps=1, guidance_scale=1.0, true_cfg_scale=1.0)
    else:
        family.generate(PROMPTS[:1], [1], steps=1, guidance=guidance, height=HEIGHT, width=WIDTH, frames=frames)
    latents = family.encode_images(images(1, frames), noise_of())
    family.losses(family.denoiser, latents, conditions_of(family, PROMPTS[:1]), noise_of(), LossOptions())
    handle.remove()
    theirs, ours = (dict(_flat(call)) for call in calls)
    if family.reads:
        name = ".0.0" if kind == "sdxl-inpainting" else ".1.hidden_states"
        tokens = latents[0, 0].numel() // 4 if family.reads == "references" else 0
        channels = {"flux-fill": 16, "sdxl-inpainting": 4}.get(kind, 0)
        left, right = (call.pop(name) for call in (theirs, ours))
        assert left.shape == right.shape
        left, right = (one[:, tokens or channels :] if channels != 16 else one[..., channels:] for one in (left, right))
        # pixels go through other roundings, and the pipelines of inpainting add noise of 1e-7 to these latents
        torch.testing.assert_close(left, right, rtol=0, atol=2e-5)
    if kind == "sdxl-inpainting":  # the time, of all images or of each
        theirs.pop(".0.1"), ours.pop(".0.1")
    if kind in ("auraflow", "sana"):  # the latents are given without their name
        theirs[".1.hidden_states"] = theirs.pop(".0.0")
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        assert value.shape == ours[name].shape, name
        changes = name.endswith(("hidden_states", "timestep", "timesteps", ".sigma")) and "encoder" not in name
        if kind == "z-image":  # arguments without names: latents, times, captions
            changes = name.startswith((".0.0", ".0.1"))
        if not changes:  # other noise at another time
            torch.testing.assert_close(value.float(), ours[name].float(), rtol=0, atol=0)


def as_drawn(family: Any, row: int, **options: Any) -> Tensor:
    """The image of a prompt by the pipeline itself, from pictures as its users have them, uint8 [1, 3, H, W]."""
    if family.name.startswith("qwen"):
        del options["guidance_scale"]
        options["negative_prompt"] = " "
    elif family.name.startswith("flux"):
        options = {name: value for name, value in options.items() if name != "true_cfg_scale"}
        options["max_sequence_length"] = 512
    else:
        del options["true_cfg_scale"]
    if family.name == "flux-kontext":
        options |= {"max_area": HEIGHT * WIDTH, "_auto_resize": False}
    found = family.pipeline(
        prompt=PROMPTS[row], generator=[noise_of(SEEDS[row])], output_type="np", height=HEIGHT, width=WIDTH,
        **as_the_pipeline_takes_them(sources_of(family, len(PROMPTS), HEIGHT, WIDTH), row), **options,
    ).images  # fmt: skip
    return torch.from_numpy(found * 255).round().to(torch.uint8).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("kind", "frames"), WITH_CLIPS)
def test_images_are_those_of_the_pipeline_and_do_not_depend_on_the_batch(family: Any, kind: str, frames: int) -> None:
    state = torch.random.get_rng_state()
    found = drawn(family, PROMPTS, SEEDS, frames=frames)
    assert found.shape == images(3, frames).shape and found.dtype == torch.uint8
    # products of other batch sizes may round otherwise, and a rounded colour may fall on the other side
    assert levels(found, drawn(family, PROMPTS, SEEDS, batch_size=2, frames=frames)) <= 1
    assert levels(found[:1], drawn(family, PROMPTS[:1], [99], frames=frames)) > 5
    assert torch.equal(state, torch.random.get_rng_state())
    if family.reads:
        theirs = as_drawn(family, 1, num_inference_steps=2, guidance_scale=3.0, true_cfg_scale=3.0)
        assert levels(found[1:2], theirs) <= 1
        return
    options: dict[str, Any] = {"guidance_scale": 3.0}
    if kind == "qwen-image":
        options = {"true_cfg_scale": 3.0, "negative_prompt": [" "] * 3}
    if kind.startswith(FILMS):
        options["num_frames"] = frames
    if kind == "sana":
        options["use_resolution_binning"] = False
    if kind == "hidream":  # whose pipeline brings every image to the area of its default
        family.pipeline.default_sample_size = (HEIGHT * WIDTH) ** 0.5 / 2 + 1e-6
    if kind == "ideogram4":
        options["guidance_schedule"] = None
    if kind == "hunyuan-video-15":
        family.pipeline.guider = family.pipeline.guider.new(**options)
        options = {"num_frames": frames}
    if kind == "ltx-2":
        options |= WITHOUT_FURTHER_GUIDANCE
    output = family.pipeline(
        prompt=list(PROMPTS), generator=[noise_of(seed) for seed in SEEDS], output_type="np", num_inference_steps=2,
        height=HEIGHT, width=WIDTH, **options,
    )  # fmt: skip
    theirs = torch.from_numpy(output.frames if kind.startswith(FILMS) else output.images)
    theirs = theirs[:, 0] if kind.startswith(FILMS) and frames == 1 else theirs
    assert levels(found, (theirs * 255).round().to(torch.uint8).movedim(-1, 1)) <= 1


@pytest.mark.parametrize("kind", CLIPS)
def test_a_clip_of_one_frame_is_an_image(family: Any, kind: str) -> None:
    still = images()
    latents, clips = (family.encode_images(one, noise_of()) for one in (still, still.unsqueeze(2)))
    assert torch.equal(latents, clips) and latents.shape[2] == 1
    assert torch.equal(drawn(family, PROMPTS, SEEDS), drawn(family, PROMPTS, SEEDS, frames=1))


def test_a_number_of_frames_that_a_model_does_not_take_is_refused() -> None:
    wan, qwen = (family_of(tiny_transformer_pipeline(kind)) for kind in ("wan", "qwen-image"))
    for frames, near in ((4, "1 or 5"), (0, "1 or 5"), (8, "5 or 9")):
        with pytest.raises(RecipeError, match=rf"frames={frames} for wan.*joins 4 frames.*Take {near}"):
            wan.generate(["a"], [1], frames=frames)
    with pytest.raises(RecipeError, match="frames=3 for wan"):
        wan.encode_images(images(1, 3), noise_of())
    with pytest.raises(RecipeError, match="frames=5 for qwen-image. Found: a model of images"):
        qwen.generate(["a"], [1], frames=5)


@pytest.mark.parametrize(("kind", "frames"), WITH_CLIPS)
def test_an_adapter_learns_is_saved_loaded_and_merged(family: Any, kind: str, frames: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = drawn(family, PROMPTS[:1], SEEDS[:1], frames=frames)
    add_adapter(family, AdapterSettings(block_size=4))
    learning = trained(family)
    assert levels(before, drawn(family, PROMPTS[:1], SEEDS[:1], frames=frames)) == 0
    latents, conditions = family.encode_images(images(2, frames), noise_of()), conditions_of(family, PROMPTS[:2])
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
    after = drawn(family, PROMPTS[:1], SEEDS[:1], frames=frames)
    save_adapter(family, tmp_path)
    again = family_of(tiny_transformer_pipeline(kind))
    load_adapter(again, tmp_path)
    assert levels(after, drawn(again, PROMPTS[:1], SEEDS[:1], frames=frames)) == 0
    weights = {name: value.clone() for name, value in again.denoiser.state_dict().items()}
    merge(again)
    assert levels(after, drawn(again, PROMPTS[:1], SEEDS[:1], frames=frames)) <= 1  # rounding of merged weights
    unmerge(again)
    assert all(torch.equal(value, weights[name]) for name, value in again.denoiser.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "frames"), [one for one in WITH_CLIPS if one[0] in MAKERS or one[0] in ("flux-kontext", "flux-fill")]
)
def test_memory_is_estimated_before_training(family: Any, kind: str, frames: int) -> None:
    add_adapter(family, AdapterSettings(block_size=4))
    settings = SubjectSettings(
        model="m", instance_images="x", instance_prompt="a sks cat", resolution=32, batch_size=1, frames=frames
    )
    trainee = Trainee(family)
    found = measure_memory(family, trainee, settings)
    assert found.trained == 4 * sum(p.numel() for p in trained(family).values()) and found.frozen > found.trained
    latents = torch.randn(1, *family.latent_shape(32, 32, frames))
    # Captions that a mask cuts to their length are counted at the longest.
    captions, conditions = ["a sks digit " * 300] if kind in ("qwen-image", "lumina2") else ["a"], None
    if family.reads:
        sources = sources_of(family, 1, 32, 32)
        conditions = family.encode_captions(captions, sources) | family.encode_sources(sources)
    expected = really_saved(trainee, Batch(latents, captions, conditions, torch.ones(1)))
    if kind == "z-image":  # the positions of the tiny model end at its longest caption
        assert found.activations is not None and found.activations > expected
    else:
        assert found.activations == pytest.approx(expected, rel=0.02)  # as in test_memory_estimate.py


def test_a_saved_pipeline_is_opened_as_its_family(tmp_path: Path) -> None:
    for kind in ("z-image", "wan"):
        tiny_transformer_pipeline(kind).save_pretrained(tmp_path / kind)
        family = open_family(tmp_path / kind, torch.bfloat16)
        assert family.name == kind and family.dtype == torch.bfloat16
        loss = family.losses(family.denoiser, family.encode_images(images(), noise_of()),
                             family.encode_captions(["a", "b"]), noise_of(), LossOptions())  # fmt: skip
        assert loss.isfinite().all()


def test_an_expert_is_trained_at_its_own_times(tmp_path: Path) -> None:
    both, one = (family_of(tiny_transformer_pipeline(kind)) for kind in ("wan-2.2", "wan"))
    assert both.times.sample(200, noise_of()).min() >= 0.875 > one.times.sample(200, noise_of()).min()
    with pytest.raises(RecipeError, match="expert=low-noise for wan. Found: a model with one denoiser"):
        one.train_expert("low-noise")
    both.train_expert("low-noise")
    assert both.times.sample(200, noise_of()).max() < 0.875 and both.denoiser is both.pipeline.transformer_2
    add_adapter(both, AdapterSettings(block_size=4))
    learning = trained(both)
    assert all(name.startswith("transformer_2.") for name in learning)
    for value in learning.values():
        value.data.normal_(std=0.1)
    after = drawn(both, PROMPTS[:1], SEEDS[:1])
    save_adapter(both, tmp_path)
    assert expert_of(tmp_path) == "low-noise" == both.expert and one.expert is None
    again = family_of(tiny_transformer_pipeline("wan-2.2"))
    again.train_expert("low-noise")
    assert levels(after, drawn(again, PROMPTS[:1], SEEDS[:1])) > 0
    load_adapter(again, tmp_path)
    assert levels(after, drawn(again, PROMPTS[:1], SEEDS[:1])) == 0
    pipeline = tiny_transformer_pipeline("wan")
    pipeline.register_to_config(expand_timesteps=True)
    with pytest.raises(RecipeError, match="times of their own"):
        family_of(pipeline)


def test_encoders_that_rest_are_beside_the_denoiser_only_while_they_work() -> None:
    family = family_of(tiny_transformer_pipeline("z-image"))
    add_adapter(family, AdapterSettings(block_size=4))
    settings = SubjectSettings(model="m", instance_images="x", instance_prompt="a sks cat", resolution=32)
    whole = measure_memory(family, Trainee(family), settings)
    resting = measure_memory(family, Trainee(family), settings.model_copy(update={"rest_encoders": True}))
    encoders = [family.pipeline.text_encoder, family.pipeline.vae]
    sizes = sum(t.nbytes for part in encoders for t in (*part.parameters(), *part.buffers()))
    assert whole.frozen - resting.frozen == sizes and whole.trained == resting.trained
    before = drawn(family, PROMPTS[:1], SEEDS[:1])
    family.rest_encoders("cpu")
    assert levels(before, drawn(family, PROMPTS[:1], SEEDS[:1])) == 0
    family.rest_encoders("meta")  # a place from which nothing comes back: work begins with a move
    assert {p.device.type for part in encoders for p in part.parameters()} == {"meta"}
    assert {p.device.type for p in family.denoiser.parameters()} == {"cpu"}
    with pytest.raises(NotImplementedError, match="meta"):
        family.encode_captions(["a"])
    with pytest.raises(NotImplementedError, match="meta"):
        family.encode_images(images(1), noise_of())


EDITORS = ("flux-kontext", "flux-fill", "qwen-image-edit", "qwen-image-edit-plus", "sdxl-inpainting")
PLAIN = sorted({kind.removesuffix("-2.2") for kind in MAKERS} | {"flux2"})


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [(kind, recipe) for kind in PLAIN for recipe in ("subject", "t2i")] + [(kind, "t2i") for kind in EDITORS],
)
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


@pytest.mark.parametrize("kind", ["flux-kontext", "qwen-image-edit-plus", "flux-fill", "z-image"])
def test_images_to_edit_are_there_where_they_are_read(family: Any, kind: str) -> None:
    sources = Sources(images(1)[:, None].expand(-1, 4, -1, -1, -1))
    needed = {"references": "at most", "mask": "an image and a mask", "": "captions alone"}[family.reads]
    with pytest.raises(RecipeError, match=needed):
        family.generate(["a"], [1], sources=sources)
    if family.reads:
        with pytest.raises(RecipeError, match=f"images to edit for {kind}. Found: none"):
            family.generate(["a"], [1])


@pytest.mark.parametrize("kind", ["z-image", "wan"])
def test_control_images_are_refused_in_words(family: Any, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"control images for a model of {kind}.*stable-diffusion, sdxl, sd3 or flux"):
        HintShape.of(family)
