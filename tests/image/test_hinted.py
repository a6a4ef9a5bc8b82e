"""Control pictures in a denoiser: added exactly, under guidance and checkpointing too, and gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from orthotune import OFTConfig
from orthotune.errors import ConfigError, DataError
from orthotune.image.control.hint_encoder import HintEncoder, HintShape
from orthotune.image.control.hinted import hinted
from orthotune.worlds import image

SHAPE = HintShape("stable-diffusion", "conv_in", channels=64, cell=4)
PROMPTS = ["a red three on a blue background", "a cyan seven on a black background"]


@pytest.fixture(scope="module")
def shipped() -> StableDiffusionPipeline:
    return image.load_pipeline()


@pytest.fixture
def pipeline(shipped: StableDiffusionPipeline) -> Iterator[StableDiffusionPipeline]:
    hooks = dict(shipped.unet.conv_in._forward_hooks)
    yield shipped
    assert dict(shipped.unet.conv_in._forward_hooks) == hooks


def _encoder(seed: int = 0) -> HintEncoder:
    torch.manual_seed(seed)
    encoder = HintEncoder(SHAPE)
    nn.init.normal_(encoder.head.weight, std=20.0)  # so large that two steps show it
    return encoder


def _hints(count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 4, 4, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)


def _inputs(count: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(2)
    return {
        "sample": torch.randn(count, 4, 8, 8, generator=generator),
        "timestep": torch.full((count,), 400),
        "encoder_hidden_states": torch.randn(count, 20, 64, generator=generator),
    }


def _draw(pipeline: StableDiffusionPipeline, prompts: list[str], seeds: list[int], steps: int = 2) -> Tensor:
    noise = [torch.Generator().manual_seed(seed) for seed in seeds]
    pictures: Tensor = pipeline(
        prompts, num_inference_steps=steps, guidance_scale=3.0, generator=noise, output_type="pt"
    ).images
    return pictures


def test_a_fresh_encoder_changes_no_bit(pipeline: StableDiffusionPipeline) -> None:
    plain = _draw(pipeline, PROMPTS, [0, 1])
    with torch.no_grad(), hinted(pipeline.unet, "conv_in", HintEncoder(SHAPE)(_hints(2))):
        controlled = _draw(pipeline, PROMPTS, [0, 1])
    assert torch.equal(controlled, plain)


def test_the_entry_gives_its_output_plus_the_features_exactly(pipeline: StableDiffusionPipeline) -> None:
    latents, features = _inputs(3)["sample"], _encoder()(_hints(3))
    plain = pipeline.unet.conv_in(latents)
    with hinted(pipeline.unet, "conv_in", features):
        assert torch.equal(pipeline.unet.conv_in(latents), plain + features)
    assert torch.equal(pipeline.unet.conv_in(latents), plain)


def test_tokens_get_the_features_row_by_row() -> None:
    model = nn.Sequential(nn.Linear(5, 6))
    features, tokens = torch.rand(2, 6, 3, 4), torch.rand(4, 12, 5)
    plain = model(tokens)
    with hinted(model, "0", features):
        added = (model(tokens) - plain).view(2, 2, 3, 4, 6)
    # (a + b) - a is b up to the rounding of one float32 addition of numbers near 1
    torch.testing.assert_close(added, features.permute(0, 2, 3, 1).expand(2, -1, -1, -1, -1), atol=1e-6, rtol=0)


def test_gradients_reach_the_whole_encoder_through_the_denoiser(pipeline: StableDiffusionPipeline) -> None:
    encoder = _encoder()
    with hinted(pipeline.unet, "conv_in", encoder(_hints(2))):
        pipeline.unet(**_inputs(2)).sample.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoder.parameters())


def test_gradients_are_the_same_when_blocks_are_computed_again(pipeline: StableDiffusionPipeline) -> None:
    grads = []
    for again in (False, True):
        encoder = _encoder()
        if again:
            pipeline.unet.enable_gradient_checkpointing()
        pipeline.unet.train()
        try:
            with hinted(pipeline.unet, "conv_in", encoder(_hints(2))):
                loss = pipeline.unet(**_inputs(2)).sample.square().mean()
            loss.backward()  # after the context has closed, as a training loop does
        finally:
            pipeline.unet.disable_gradient_checkpointing()
            pipeline.unet.eval()
        grads.append([parameter.grad for parameter in encoder.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_under_guidance_each_picture_sees_its_own_hint(pipeline: StableDiffusionPipeline) -> None:
    encoder, hints = _encoder(), _hints(2)
    with torch.no_grad():
        with hinted(pipeline.unet, "conv_in", encoder(hints)):
            together = _draw(pipeline, PROMPTS, [4, 5])
        for number in range(2):
            with hinted(pipeline.unet, "conv_in", encoder(hints[number : number + 1])):
                alone = _draw(pipeline, [PROMPTS[number]], [4 + number])
            # Another batch size, other orders of summing; hints that were swapped differ by more than 0.1.
            torch.testing.assert_close(together[number : number + 1], alone, atol=1e-4, rtol=0)
        with hinted(pipeline.unet, "conv_in", encoder(hints[[1, 0]])):
            swapped = _draw(pipeline, PROMPTS, [4, 5])
    assert (swapped - together).abs().max() > 0.1


def test_it_is_gone_after_an_exception(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(KeyError, match="inside"), hinted(pipeline.unet, "conv_in", _encoder()(_hints(1))):
        raise KeyError("inside")
    latents = _inputs(1)["sample"]
    assert torch.equal(pipeline.unet.conv_in(latents), pipeline.unet.conv_in.forward(latents))


def test_the_adapter_of_the_entry_turns_first_then_comes_the_hint() -> None:
    unet = image.load_pipeline().unet
    unet.add_adapter(OFTConfig(target_modules=["conv_in", "to_q"], oft_block_size=4))
    for name, parameter in unet.named_parameters():
        if "oft_" in name:
            nn.init.normal_(parameter, std=0.1)
    latents, features = _inputs(2)["sample"], _encoder()(_hints(2))
    turned = unet.conv_in(latents)
    assert not torch.equal(turned, unet.conv_in.get_base_layer()(latents))
    with hinted(unet, "conv_in", features):
        assert torch.equal(unet.conv_in(latents), turned + features)


def test_two_controls_add_up(pipeline: StableDiffusionPipeline) -> None:
    latents = _inputs(1)["sample"]
    one, other = _encoder(0)(_hints(1)), _encoder(1)(_hints(1))
    plain = pipeline.unet.conv_in(latents)
    with hinted(pipeline.unet, "conv_in", one), hinted(pipeline.unet, "conv_in", other):
        assert torch.equal(pipeline.unet.conv_in(latents), plain + one + other)


@pytest.mark.parametrize("features", [torch.zeros(1, 64, 4, 8), torch.zeros(1, 32, 8, 8), torch.zeros(3, 64, 8, 8)])
def test_features_of_another_size_are_refused(pipeline: StableDiffusionPipeline, features: Tensor) -> None:
    with pytest.raises(DataError, match="as large as"), hinted(pipeline.unet, "conv_in", features):
        pipeline.unet(**_inputs(2))


def test_an_unknown_layer_and_one_that_did_not_run_are_errors(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ConfigError, match="no such layer"), hinted(pipeline.unet, "conv_inn", torch.zeros(1)):
        pass
    with pytest.raises(ConfigError, match="did not run"), hinted(pipeline.unet, "conv_in", torch.zeros(1)):
        pass
