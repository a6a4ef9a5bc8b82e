"""Blocks that stay in main memory: the same numbers, and where the weights are."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.adapter.adapters import AdapterSettings, add_adapter, trained
from orthotune.image.families.family import LossOptions
from orthotune.image.families.registry import family_of
from orthotune.image.loop.block_swap import RESIDENT, BlockSwap, blocks_of, swapped, swapped_bytes
from orthotune.image.loop.memory_estimate import measure_memory
from orthotune.image.loop.trainee import Trainee
from orthotune.recipes import subject
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.worlds.image_folders import write_subject
from tests.support.tiny_pipelines import tiny_pipeline
from tests.support.transformer_pipelines import tiny_transformer_pipeline


class Spoiling(BlockSwap):
    """Fills the copies of an evicted block with nan, so that whoever still reads them is found out."""

    def evict(self, number: int) -> None:
        copies = [tensor.data for tensor in self.stored[number]] if number in self.resident else []
        super().evict(number)
        for copy in copies:
            copy.fill_(torch.nan)


def deep(layers: int = 5) -> Any:
    """Z-Image with several blocks, of which some run before the others."""
    from diffusers import ZImageTransformer2DModel

    pipeline = tiny_transformer_pipeline("z-image")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = dict(pipeline.transformer.config) | {"n_layers": layers, "n_refiner_layers": 2}
        transformer = ZImageTransformer2DModel.from_config(config)
        for name in ("x_pad_token", "cap_pad_token"):
            getattr(transformer, name).data.normal_(std=0.02)
    pipeline.register_modules(transformer=transformer)
    return pipeline


def step(family: Any, trainee: Trainee) -> tuple[Tensor, dict[str, Tensor]]:
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(256, (2, 3, 32, 64), generator=noise, dtype=torch.uint8)
    latents = family.encode_images(images, noise)
    conditions = family.encode_captions(["a", "sks digit"])
    loss = family.losses(trainee.denoiser, latents, conditions, torch.Generator().manual_seed(2), LossOptions()).mean()
    loss.backward()
    found = {name: p.grad.clone() for name, p in trained(family).items() if p.grad is not None}
    for p in trained(family).values():
        p.grad = None
    return loss.detach(), found


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("count", [1, 3, 99])
def test_swapped_blocks_compute_the_same(side: str, count: int) -> None:
    family = family_of(deep())
    add_adapter(family, AdapterSettings(block_size=4, rotation={"side": side}))
    for p in trained(family).values():
        p.data.normal_(std=0.1)
    trainee = Trainee(family)
    trainee.train()
    trainee.checkpoint_gradients()
    loss, gradients = step(family, trainee)
    assert len(gradients) == len(trained(family)) > 0
    before = family.generate(["a red digit"], [1], steps=2, height=32, width=64)
    blocks = swapped(family.denoiser, count)
    swap = Spoiling(blocks, "cpu")
    most = 0

    def watch(*_: Any) -> None:
        nonlocal most
        most = max(most, len(swap.resident))

    for block in blocks:
        block.register_forward_hook(watch)
    for _ in range(2):
        again, found = step(family, trainee)
        assert torch.equal(loss, again) and found.keys() == gradients.keys()
        assert all(torch.equal(value, gradients[name]) for name, value in found.items())
    assert most == min(RESIDENT, len(blocks))
    assert torch.equal(before, family.generate(["a red digit"], [1], steps=2, height=32, width=64))


def test_trained_parameters_stay_and_frozen_ones_leave() -> None:
    family = family_of(deep())
    add_adapter(family, AdapterSettings(block_size=4))
    blocks = swapped(family.denoiser, 4)
    swap = BlockSwap(blocks, "cpu")
    frozen = {p for block in blocks for p in block.parameters() if not p.requires_grad}
    assert {tensor for held in swap.stored for tensor in held} == frozen
    assert not any(p in held for held in swap.stored for p in trained(family).values())
    blocks[1].register_forward_hook(lambda *_: found.append(list(swap.resident)))
    found: list[list[int]] = []
    family.generate(["a"], [1], steps=1, guidance=0.0, height=32, width=32)
    assert found == [[1, 2]]
    for number, held in enumerate(swap.stored):
        for tensor, kept in held.items():
            assert (tensor.data_ptr() != kept.data_ptr()) == (number in swap.resident) and torch.equal(tensor, kept)


def test_the_estimate_leaves_out_what_is_not_there() -> None:
    family = family_of(deep())
    add_adapter(family, AdapterSettings(block_size=4))
    settings = SubjectSettings(
        model="m", instance_images="x", instance_prompt="a sks cat", resolution=32, gradient_checkpointing=True
    )
    whole = measure_memory(family, Trainee(family), settings)
    part = measure_memory(family, Trainee(family), settings.model_copy(update={"swap_blocks": 4}))
    swap = BlockSwap(swapped(family.denoiser, 4), "cpu")
    sizes = [sum(kept.nbytes for kept in held.values()) for held in swap.stored]
    assert whole.frozen - part.frozen == sum(sizes) - max(sum(pair) for pair in pairwise(sizes))
    assert whole.frozen - part.frozen == swapped_bytes(swap.blocks) > 0
    assert (whole.trained, whole.activations) == (part.trained, part.activations)


def test_a_unet_and_no_checkpointing_are_refused() -> None:
    with pytest.raises(RecipeError, match="swap_blocks for a UNet2DConditionModel"):
        blocks_of(tiny_pipeline("sd15").unet)
    with pytest.raises(RecipeError, match="swap_blocks for a Linear"):
        blocks_of(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="swap_blocks needs gradient_checkpointing=true"):
        SubjectSettings(model="m", instance_images="x", instance_prompt="a", swap_blocks=2)
    with pytest.raises(ValueError, match="swap_blocks"):
        SubjectSettings(
            model="m", instance_images="x", instance_prompt="a", swap_blocks=2, gradient_checkpointing=True,
            method="full",
        )  # fmt: skip


def test_a_run_with_swapped_blocks_ends_with_the_same_adapter(tmp_path: Path) -> None:
    write_subject(tmp_path / "images")
    deep(3).save_pretrained(tmp_path / "model")
    found = []
    for name, more in (("all", {}), ("swapped", {"swap_blocks": 4, "rest_encoders": True})):
        settings = SubjectSettings(
            model=str(tmp_path / "model"), instance_images=str(tmp_path / "images"), instance_prompt="a sks digit",
            steps=2, batch_size=1, block_size=4, sample_steps=1, sample_seeds=[0], resolution=32,
            gradient_checkpointing=True, learning_rate=0.01, output=tmp_path / name, **more,
        )  # fmt: skip
        subject.run(settings, say=lambda _: None, bar=False)
        found.append(load_file(tmp_path / name / "adapter" / "adapter_model.safetensors"))
    assert found[0].keys() == found[1].keys() and any(value.abs().max() > 0 for value in found[0].values())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_evicting_too_early_would_be_found_out() -> None:
    family = family_of(deep(2))
    add_adapter(family, AdapterSettings(block_size=4))
    for p in trained(family).values():
        p.data.normal_(std=0.1)
    trainee = Trainee(family)
    trainee.train()
    trainee.checkpoint_gradients()
    swap = Spoiling(swapped(family.denoiser, 2), "cpu")
    for number, block in enumerate(swap.blocks):
        block.feed_forward.register_forward_pre_hook(lambda *_, number=number: swap.evict(number))
    assert not all(value.isfinite().all() for value in step(family, trainee)[1].values())
