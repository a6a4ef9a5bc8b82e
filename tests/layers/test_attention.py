"""What is special about attention: masks, both calls, the parts, the encoder's fast path."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import UnsupportedLayerError
from tests.support.contract_cases import randomize
from tests.support.layer_models import linear


class Packed(nn.Module):
    """An attention, called with whatever options."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x: torch.Tensor, **options: Any) -> Any:
        return self.attention(x, x, x, **options)


def _adapted(target: str = "attention", **options: Any) -> Any:
    model = get_peft_model(Packed(**options), OFTConfig(oft_block_size=4, target_modules=[target]))
    return randomize(model).eval()


X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
CALLS: dict[str, dict[str, Any]] = {
    "weights": {},
    "weights of each head": {"average_attn_weights": False},
    "no weights": {"need_weights": False},
    "mask": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1), "need_weights": False},
    "padding": {"key_padding_mask": torch.tensor([[False] * 4 + [True]] * 3)},
}


@pytest.mark.parametrize("target", ["attention", "out_proj"])
@pytest.mark.parametrize("options", [{}, {"add_bias_kv": True}, {"add_zero_attn": True, "bias": False}], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_every_call_equals_the_merged_one(call: str, options: dict[str, Any], target: str) -> None:
    model = _adapted(target, **options)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            output, weights = model(X, **CALLS[call])
            model.merge_adapter()
            expected, expected_weights = model(X, **CALLS[call])
            model.unmerge_adapter()
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)  # float32, four products of 8
        if weights is not None:
            torch.testing.assert_close(weights, expected_weights, rtol=0, atol=1e-5)


def test_parts_have_rotations_of_their_own() -> None:
    model = _adapted()
    layer = model.base_model.model.attention
    assert list(layer.rotations("default")) == ["q", "k", "v", "out"]
    names = [n for n, _ in model.named_parameters() if "oft_" in n]
    assert names[0].endswith("attention.oft_R.default.q.weight") and len(names) == 4
    assert layer.num_heads == 2 and layer.embed_dim == 8 and layer.batch_first


def test_a_missing_attribute_is_missing() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = _adapted().base_model.model.attention.nonsense


def test_the_whole_and_its_output_alone_exclude_each_other() -> None:
    model = _adapted("out_proj")
    with pytest.raises(UnsupportedLayerError, match="Found: an adapter on its out_proj alone. Needed: adapters on the"):
        model.add_adapter("second", OFTConfig(oft_block_size=4, target_modules=["attention"]))


def test_the_output_of_a_whole_is_not_adapted_twice() -> None:
    model = get_peft_model(Packed(), OFTConfig(oft_block_size=4, target_modules=["attention", "out_proj"]))
    assert len([n for n, _ in model.named_parameters() if "oft_" in n]) == 4


@pytest.mark.filterwarnings("ignore:All adapters are already merged")  # PEFT's
@pytest.mark.parametrize("targets", [["self_attn"], ["out_proj"], ["linear1"], ["linear1", "linear2", "self_attn"]])
@pytest.mark.parametrize("padded", [False, True])
def test_the_fast_path_of_an_encoder_does_not_pass_by(targets: list[str], padded: bool) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2)
    model = randomize(get_peft_model(encoder.eval(), OFTConfig(oft_block_size=4, target_modules=targets))).eval()
    mask = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 3 + [True] * 2]) if padded else None
    seen = ~mask if mask is not None else torch.ones(3, 5, dtype=torch.bool)
    slow = model(X, src_key_padding_mask=mask).detach()
    with torch.inference_mode():
        fast = model(X, src_key_padding_mask=mask)
        with model.disable_adapter():
            plain = model(X, src_key_padding_mask=mask)
        model.merge_adapter()
        merged = model(X, src_key_padding_mask=mask)
        unloaded = model.merge_and_unload()(X, src_key_padding_mask=mask)
    for found in (fast, merged, unloaded):  # float32, two layers
        torch.testing.assert_close(found[seen], slow[seen], rtol=0, atol=1e-5)
    assert (slow - plain)[seen].abs().max() > 0.1


def test_its_bias_is_the_packed_one() -> None:
    base = nn.MultiheadAttention(8, 2)
    assert linear(base=base).base_model.model.layer.bias is base.in_proj_bias
