"""diffusers' own ways to change a strength."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from orthotune import OFTConfig
from orthotune.layers.base import OFTLayer
from orthotune.tuner.strength import set_scale
from tests.support.contract_cases import randomize

X, HIDDEN = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)


@pytest.fixture
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    unet.add_adapter(OFTConfig(target_modules=["to_q", "conv1", "to_k"]), adapter_name="A")
    unet.add_adapter(OFTConfig(target_modules=["to_q", "proj_in"], side="out"), adapter_name="B")
    return randomize(randomize(unet.eval(), adapter="A"), seed=5, adapter="B")


def run(unet: UNet2DConditionModel, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return unet(X, 3, HIDDEN, **kwargs).sample


def test_set_adapters_with_weights(unet: UNet2DConditionModel) -> None:
    unet.set_adapters(["A", "B"], weights=[0.7, -0.3])
    found = run(unet)
    set_scale(unet, "A", 1)
    assert not torch.equal(run(unet), found)
    set_scale(unet, "A", 0.7)
    assert torch.equal(run(unet), found)
    unet.set_adapters(["A"], weights=[{"down": 0.2, "mid": 0.5, "up": 1.0}])
    found = {name: m.strength("A").t for name, m in unet.named_modules() if isinstance(m, OFTLayer) and "to_q" in name}
    wanted = {"down_blocks": 0.2, "mid_block": 0.5, "up_blocks": 1.0}
    assert len(found) == 8 and all(t == wanted[name.split(".")[0]] for name, t in found.items())


def test_scale_of_a_call_ends_with_it(unet: UNet2DConditionModel) -> None:
    unet.set_adapters(["A", "B"], weights=[0.7, 0.4])
    before = run(unet)
    scaled = run(unet, cross_attention_kwargs={"scale": 0.5})
    assert torch.equal(run(unet), before)
    unet.set_adapters(["A", "B"], weights=[0.35, 0.2])
    assert torch.equal(run(unet), scaled)


def test_fuse_and_unfuse_at_a_scale(unet: UNet2DConditionModel) -> None:
    weights = {name: p.detach().clone() for name, p in unet.named_parameters() if "oft_" not in name}
    unet.set_adapters(["A"], weights=[0.5])
    expected = run(unet)
    unet.set_adapters(["A"])
    unet.fuse_lora(lora_scale=0.5, adapter_names=["A"])
    # the weight turns instead of the input: float32 through some dozen layers
    torch.testing.assert_close(run(unet), expected, atol=1e-4, rtol=0)
    unet.unfuse_lora()
    assert all(torch.equal(p, weights[n]) for n, p in unet.named_parameters() if "oft_" not in n)
