"""What is trained: which modules, how many parameters, and that merging changes no picture."""

from __future__ import annotations

import pytest
import torch

from orthotune.errors import BlockSizeError, ConfigError, RecipeError, TargetError
from orthotune.image.adapter.adapters import add_adapter, matching_rank, merge, trained, unmerge
from orthotune.image.adapter.settings import METHODS, AdapterSettings
from orthotune.image.adapter.targets import adapted_modules, targets
from orthotune.image.families.family import LossOptions
from orthotune.image.families.registry import open_family
from orthotune.layers.base import OFTLayer
from tests.image.test_families import PROMPTS, SEEDS, SMALL, levels, noise_of, pictures
from tests.support.tiny_pipelines import FAMILIES, IDLE, known_of

BOTH = "attention+convolutions"
WAYS = {
    "oft": AdapterSettings("oft", r=2),
    "coft": AdapterSettings("coft", block_size=4, eps=0.5),
    "lora": AdapterSettings("lora", lora_rank=2),
    "options": AdapterSettings(
        "oft", r=2, text_encoders=True, rotation={"magnitude": True, "side": "out", "scaled": True}
    ),
}


def turn(family):
    """Give what is trained some numbers."""
    generator = noise_of(11)
    with torch.no_grad():
        for parameter in trained(family).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def loss_of(family):
    latents = family.encode_images(pictures(), noise_of())
    return family.losses(
        family.denoiser, latents, family.encode_captions(PROMPTS[:2]), noise_of(), LossOptions()
    ).mean()


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_learns_and_merges(tiny, kind, way):
    family = open_family(tiny(kind))
    base = family.generate(PROMPTS, SEEDS, **SMALL)
    parts = add_adapter(family, WAYS[way])
    assert all(getattr(family.pipeline, name) is part for name, part in parts.items())
    fresh = family.generate(PROMPTS, SEEDS, **SMALL)
    # LoRA and the input's rotation add an exact zero and turn by an exact identity; OFT's own GEMM may round apart
    assert levels(fresh, base) <= 1
    turn(family)
    loss_of(family).backward()
    idle = [name for name, p in trained(family).items() if p.grad is None or not p.grad.any()]
    assert not idle
    adapted = family.generate(PROMPTS, SEEDS, **SMALL)
    assert levels(adapted, base) > 2
    before = {name: p.clone() for name, p in family.denoiser.named_parameters()}
    merge(family)
    # one rounding of each merged weight, through two steps of the sampler with guidance
    assert levels(family.generate(PROMPTS, SEEDS, **SMALL), adapted) <= 2
    unmerge(family)
    for name, parameter in family.denoiser.named_parameters():
        if way == "lora":  # PEFT subtracts it again, which rounds
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=1e-6)
        else:
            assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("kind", FAMILIES)
def test_attention_means_every_attention_that_a_picture_depends_on(tiny, kind):
    family = open_family(tiny(kind))
    found = set(adapted_modules(family, AdapterSettings(text_encoders=True))[family.denoiser_name])
    names = {
        key for key, module in family.denoiser.named_modules()
        if "attn" in key and isinstance(module, torch.nn.Linear) and "norm" not in key
    }  # fmt: skip
    assert names - found == known_of(kind, IDLE, set())


def test_convolutions_are_those_of_the_residual_blocks(tiny):
    family = open_family(tiny("sd15"))
    found = adapted_modules(family, AdapterSettings(targets=BOTH))["unet"]
    convolutions = [name for name in found if "attn" not in name]
    assert convolutions and all(".resnets." in name for name in convolutions)
    assert any(name.endswith("conv_shortcut") for name in convolutions)
    add_adapter(family, AdapterSettings(targets=BOTH, block_size=4))
    turn(family)
    adapted = family.generate(PROMPTS, SEEDS, **SMALL)
    merge(family)
    assert levels(family.generate(PROMPTS, SEEDS, **SMALL), adapted) <= 2  # as above


def test_text_encoders_are_adapted_but_for_layers_that_nothing_reads(tiny):
    found = adapted_modules(open_family(tiny("sdxl")), AdapterSettings(text_encoders=True))
    assert {name.split("layers.")[1][0] for name in found["text_encoder"]} == {"0"}
    assert {name.split("layers.")[1][0] for name in found["text_encoder_2"]} == {"0", "1"}
    assert set(adapted_modules(open_family(tiny("sd3")), AdapterSettings(text_encoders=True))) == {
        "transformer", "text_encoder", "text_encoder_2",
    }  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
def test_full_finetuning_trains_the_weights_that_an_adapter_would_turn(tiny, kind):
    family, other = open_family(tiny(kind)), open_family(tiny(kind))
    add_adapter(family, AdapterSettings("full", text_encoders=True))
    add_adapter(other, AdapterSettings("oft", r=2, text_encoders=True))
    turned = {
        f"{component}.{name}.weight"
        for component in (other.denoiser_name, *other.text_encoders)
        for name, module in getattr(other.pipeline, component).named_modules()
        if isinstance(module, OFTLayer)
    }
    assert set(trained(family)) == turned


@pytest.mark.parametrize(("kind", "text_encoders"), [("sd15", False), *((kind, True) for kind in FAMILIES)])
def test_the_rank_of_equal_parameters(tiny, kind, text_encoders):
    family = open_family(tiny(kind))
    rotations = AdapterSettings("oft", block_size=4, text_encoders=text_encoders)
    rank, lora, wanted = matching_rank(family, rotations)
    assert not trained(family), "counting changed the model"
    add_adapter(family, rotations)
    assert sum(p.numel() for p in trained(family).values()) == wanted
    other = open_family(tiny(kind))
    add_adapter(other, AdapterSettings("lora", block_size=4, text_encoders=text_encoders))
    shapes = [p.shape for p in trained(other).values()]
    assert sum(shape.numel() for shape in shapes) == lora
    assert {min(shape) for shape in shapes} == {rank}
    per_rank = lora // rank
    assert abs(lora - wanted) <= per_rank / 2 or rank == 1


def test_the_default_block_size_fits_every_layer_and_a_given_one_must(tiny):
    add_adapter(open_family(tiny("sd15")), AdapterSettings())
    with pytest.raises(BlockSizeError, match="block_size=5"):
        add_adapter(open_family(tiny("sd15")), AdapterSettings(block_size=5))


def test_every_method_trains_float32(tiny):
    for method in METHODS:
        family = open_family(tiny("sd15"), torch.bfloat16)
        add_adapter(family, AdapterSettings(method, rotation={"magnitude": True} if "oft" in method else {}))
        assert {p.dtype for p in trained(family).values()} == {torch.float32}


@pytest.mark.parametrize(
    ("kind", "settings", "error", "said"),
    [
        ("sd15", {"rotation": {"magnitud": True}}, RecipeError, "magnitude"),
        ("sd15", {"targets": ["to_qq"]}, TargetError, "to_q"),
        ("sd15", {"targets": "atention"}, TargetError, "attention"),
        ("sd3", {"targets": BOTH}, TargetError, "no convolutions"),
        ("sd15", {"targets": ["norm1"]}, TargetError, "weight"),
    ],
)
def test_what_is_wrong_is_said(tiny, kind, settings, error, said):
    family = open_family(tiny(kind))
    with pytest.raises(error, match=said):
        add_adapter(family, AdapterSettings(**settings))
    assert not trained(family)


def test_an_unknown_method_and_a_second_adapter_are_refused(tiny):
    with pytest.raises(RecipeError, match="oft, coft, lora, full"):
        AdapterSettings("dora")
    family = open_family(tiny("sd15"))
    add_adapter(family, AdapterSettings(r=2))
    with pytest.raises(ConfigError, match="Merge it first"):
        add_adapter(family, AdapterSettings(r=2))


def test_names_of_modules_can_be_given(tiny):
    family = open_family(tiny("sd15"))
    assert targets(family, "to_v") == ["to_v"]
    found = adapted_modules(family, AdapterSettings(targets=["to_v", "conv_out"]))["unet"]
    assert {name.rpartition(".")[2] for name in found} == {"to_v", "conv_out"}
