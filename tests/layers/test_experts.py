"""What is special about parameters without a module: several of one module, real mixtures, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GptOssConfig, GptOssForCausalLM, MixtralConfig, MixtralForCausalLM

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import UnsupportedLayerError
from orthotune.layers.experts import ParamWrapper
from tests.support.contract_cases import randomize, rotation_parameters, snapshot
from tests.support.contract_layers import Experts, Net

NAMES = ["experts.gate_up_proj", "experts.down_proj"]
IDS = torch.arange(14).view(2, 7)


def _loud(model: nn.Module) -> nn.Module:
    """``model`` with weights so large that its experts are heard in its output."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return model.eval()


def _mixtral() -> nn.Module:
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=4, num_experts_per_tok=2, vocab_size=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return _loud(MixtralForCausalLM(config))


def _gpt_oss() -> nn.Module:
    torch.manual_seed(0)
    config = GptOssConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        head_dim=8, num_local_experts=4, num_experts_per_tok=2, vocab_size=32, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    return _loud(GptOssForCausalLM(config))


@pytest.mark.parametrize("build", [_mixtral, _gpt_oss])
@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_whole_mixture_of_experts(build, side: str, shared: bool) -> None:
    base = build()
    plain = base(IDS).logits
    before = snapshot(dict(base.named_parameters()))
    config = OFTConfig(
        oft_block_size=4, target_modules=["q_proj"], target_parameters=NAMES, side=side, block_share=shared
    )
    model = get_peft_model(base, config).eval()
    torch.testing.assert_close(model(IDS).logits, plain, rtol=0, atol=1e-5)  # float32; x R with R = I, two layers
    logits = randomize(model)(IDS).logits
    assert (logits - plain).abs().max() > 1e-2
    model.merge_adapter()
    torch.testing.assert_close(model(IDS).logits, logits, rtol=0, atol=1e-4)  # two layers of two experts each
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(IDS).logits, plain)
    model.train()(IDS).logits.square().sum().backward()
    assert all(p.grad.any() for p in rotation_parameters(model).values())
    unloaded = model.unload()
    assert not any(isinstance(m, ParamWrapper) for m in unloaded.modules())
    after = dict(unloaded.named_parameters())
    assert after.keys() == before.keys() and all(torch.equal(after[n], v) for n, v in before.items())


def test_which_dimension_turns() -> None:
    def width(build, name: str, side: str) -> int:
        config = OFTConfig(oft_block_size=4, target_modules=[], target_parameters=[name], side=side)
        model = get_peft_model(build(), config)
        wrapper = next(m for m in model.modules() if isinstance(m, ParamWrapper))
        return wrapper.rotations("default")[""].layout.features

    # hidden 16, intermediate 24, gate and up together 48, whatever the order in memory
    for build in (_mixtral, _gpt_oss):
        assert [width(build, "experts.gate_up_proj", side) for side in ("in", "out")] == [16, 48]
        assert [width(build, "experts.down_proj", side) for side in ("in", "out")] == [24, 16]


def test_each_expert_has_its_own_blocks_and_ball() -> None:
    config = OFTConfig(oft_block_size=4, target_modules=[], target_parameters=["layer.weight"], coft=True, eps=0.3)
    model = randomize(get_peft_model(Net(Experts(False)), config)).train()
    layer = model.base_model.model.layer
    rotation = layer.rotations("default")[""]
    assert rotation.weight.shape == (9, 6) and rotation().shape == (3, 3, 4, 4)
    model(torch.randn(5, 12))
    # three blocks for each expert: the radius is eps / sqrt(3), not / sqrt(9)
    norms = 2**0.5 * rotation.weight.norm(dim=1)
    assert norms.max().item() == pytest.approx(0.3 / 3**0.5, rel=1e-5)


def test_two_adapters_on_the_parameters_of_one_module() -> None:
    model = get_peft_model(_mixtral(), OFTConfig(oft_block_size=4, target_modules=[], target_parameters=NAMES))
    first = randomize(model).eval()(IDS).logits
    model.add_adapter("second", OFTConfig(oft_block_size=8, target_modules=[], target_parameters=NAMES))
    randomize(model, adapter="second").eval()
    torch.testing.assert_close(model(IDS).logits, first, rtol=0, atol=0)
    model.set_adapter("second")
    second = model(IDS).logits
    assert (second - first).abs().max() > 1e-2
    model.merge_adapter()
    torch.testing.assert_close(model(IDS).logits, second, rtol=0, atol=1e-4)


def test_attributes_of_the_module_are_still_there() -> None:
    model = get_peft_model(_mixtral(), OFTConfig(oft_block_size=4, target_modules=[], target_parameters=NAMES))
    experts = next(m for m in model.modules() if isinstance(m, ParamWrapper))
    assert experts.num_experts == 4 and callable(experts.act_fn)


def test_a_parameter_without_rows_and_columns_is_refused() -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        get_peft_model(
            Net(nn.LayerNorm(8)), OFTConfig(oft_block_size=4, target_modules=[], target_parameters=["layer.weight"])
        )
    assert "Found: shape (8,). Needed: (out, in), (experts, out, in) or (experts, in, out)" in str(caught.value)
