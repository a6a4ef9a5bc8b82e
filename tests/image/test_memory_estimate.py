"""What is counted beforehand is what a real step keeps."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from orthotune.image.adapter.adapters import add_adapter, trained
from orthotune.image.adapter.settings import AdapterSettings
from orthotune.image.data.batch import Batch
from orthotune.image.families.registry import family_of, open_family
from orthotune.image.loop.block_swap import swapped, swapped_bytes
from orthotune.image.loop.memory_estimate import estimate_memory, measure_memory
from orthotune.image.loop.trainee import Trainee
from tests.support.saved_tensors import really_saved
from tests.support.tiny_pipelines import FAMILIES
from tests.support.transformer_pipelines import tiny_transformer_pipeline

WAYS = {
    "oft": AdapterSettings(r=2),
    "lora": AdapterSettings("lora", lora_rank=2, text_encoders=True),
    "full": AdapterSettings("full"),
}


def settings(**changed):
    usual = {
        "batch_size": 3, "resolution": 24, "optimizer": "adamw", "ema": 0.0, "mixed_precision": "no",
        "gradient_checkpointing": False, "rest_encoders": False, "swap_blocks": None, "quantization": None, "frames": 1,
    }  # fmt: skip
    return SimpleNamespace(**usual | changed)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize(("way", "checkpointing"), [("oft", False), ("oft", True), ("lora", False), ("full", False)])
def test_activations_are_those_of_a_real_step(tiny, kind, way, checkpointing):
    family = open_family(tiny(kind))
    add_adapter(family, WAYS[way])
    trainee = Trainee(family)
    found = measure_memory(family, trainee, settings(gradient_checkpointing=checkpointing)).activations
    if checkpointing:
        trainee.checkpoint_gradients()
    latent = 24 // family.pixels_per_latent
    expected = really_saved(trainee, Batch(torch.randn(3, 4, latent, latent), ["a"] * 3, None, torch.ones(3)))
    # a rotation's own numbers may be kept once for all layers or once for each, whichever way they are computed
    assert found == pytest.approx(expected, rel=0.02)


def test_the_rest_is_counted(tiny):
    family = open_family(tiny("sd15"), torch.bfloat16)
    every = {id(p): p for part in family.modules().values() for p in part.parameters()}
    add_adapter(family, AdapterSettings(r=2))
    trainee = Trainee(family)
    count = sum(p.numel() for p in trained(family).values())
    found = measure_memory(family, trainee, settings(mixed_precision="bf16", ema=0.99, optimizer="adamw-8bit"))
    buffers = sum(b.nbytes for part in family.modules().values() for b in part.buffers())
    assert found.frozen == 2 * sum(p.numel() for p in every.values()) + buffers
    assert sum(found.components.values()) == found.frozen and set(found.components) == {"unet", "vae", "text_encoder"}
    assert (found.trained, found.gradients, found.optimizer, found.average) == (
        4 * count,
        4 * count,
        2 * count,
        4 * count,
    )
    assert found.total == found.frozen + 14 * count + found.activations
    assert all(p.device.type == "cpu" for p in trainee.parameters()) and not trainee.denoiser.is_gradient_checkpointing


def test_lines_for_a_terminal(tiny):
    family = open_family(tiny("sd15"))
    add_adapter(family, AdapterSettings(r=2))
    first, second, frozen, cards = estimate_memory(family, Trainee(family), settings())
    assert all(name in frozen for name in ("unet", "vae", "text_encoder")) and "80 GB: yes" in cards
    assert "estimate" in first and "activations" in second and "average" not in second


@pytest.mark.slow
def test_flux2_klein_fits_a_card_of_12_gb():
    """Predictions of the estimate: weights in bfloat16, text encoders and VAE resting, an image of 1024 pixels."""
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    pipeline = tiny_transformer_pipeline("flux2-klein")
    with torch.device("meta"):  # of 4 billion parameters, as its config has it, but for the width of the words
        transformer = Flux2Transformer2DModel(
            num_layers=5, num_single_layers=20, num_attention_heads=24, in_channels=128, guidance_embeds=False,
            joint_attention_dim=pipeline.transformer.config.joint_attention_dim,
        ).to(torch.bfloat16)  # fmt: skip
    vae = AutoencoderKLFlux2(block_out_channels=(8,) * 4, norm_num_groups=2, layers_per_block=1).to(torch.bfloat16)
    pipeline.register_modules(vae=vae, transformer=transformer)
    pipeline.text_encoder.to(torch.bfloat16)
    family = family_of(pipeline)
    add_adapter(family, AdapterSettings(block_size=32))
    wanted = settings(
        batch_size=1, resolution=1024, mixed_precision="bf16", gradient_checkpointing=True, rest_encoders=True
    )
    whole = measure_memory(family, Trainee(family), wanted)
    assert "12 GB: yes" in whole.cards() and whole.total > 7 * 1024**3
    away = swapped_bytes(swapped(family.denoiser, 12))
    assert away > 2 * 1024**3  # ten of the blocks


@pytest.mark.slow
@pytest.mark.parametrize(("way", "most"), [("swap", 20), ("nf4", 20)])
def test_flux_of_12_billion_parameters_fits_a_card_of_24_gb(tiny, way, most):
    """Predictions of the estimate, as of FLUX.2: 30 of 57 blocks in the memory of the host, or four bits a weight."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    pipeline = open_family(tiny("flux-dev"), torch.bfloat16).pipeline
    small = pipeline.transformer.config
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            guidance_embeds=small.guidance_embeds, joint_attention_dim=small.joint_attention_dim,
            pooled_projection_dim=small.pooled_projection_dim,
        ).to(torch.bfloat16)  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4, norm_num_groups=2, latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).to(torch.bfloat16)  # fmt: skip
    pipeline.register_modules(transformer=transformer, vae=vae)
    family = family_of(type(pipeline)(**pipeline.components))
    add_adapter(family, AdapterSettings(block_size=32))
    wanted = settings(
        batch_size=1, resolution=1024, mixed_precision="bf16", gradient_checkpointing=True, rest_encoders=True,
        **{"swap": {"swap_blocks": 30}, "nf4": {"quantization": "nf4"}}[way],
    )  # fmt: skip
    found = measure_memory(family, Trainee(family), wanted)
    assert found.activations and found.total < most * 1024**3 and "24 GB: yes" in found.cards()
    plain = measure_memory(
        family, Trainee(family), settings(**vars(wanted) | {"swap_blocks": None, "quantization": None})
    )
    assert plain.frozen > 22 * 1024**3, "the weights alone"
