"""Magnitudes added to a trained rotation: nothing changes at first, only they learn, and the file holds both."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError
from orthotune.layers.base import OFTLayer
from orthotune.tuner.strength import free_magnitudes


@pytest.mark.parametrize("side", ["in", "out"])
def test_nothing_changes_at_first_and_only_magnitudes_learn(llama, turn, ids, side):
    model = turn(get_peft_model(llama(), OFTConfig(oft_block_size=8, target_modules="all-linear", side=side)))
    with torch.no_grad():
        before = model(ids).logits  # also leaves rotations standing, which must not go past the magnitudes
    scales = free_magnitudes(model)
    # Query, key, value, output, gate, up and down of two layers, without the head.
    assert len(scales) == 14
    with torch.no_grad():
        # A product with the scale of 1 is exact, but a bias is then added outside of the matrix product.
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-6, atol=1e-6)
    frozen = {name: p.clone() for name, p in model.named_parameters() if "magnitude" not in name}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "oft_magnitude" in name
    }
    model.train()
    optimizer = torch.optim.SGD(scales.values(), lr=0.1)
    model(ids, labels=ids).loss.backward()
    assert all(scale.grad is not None and scale.grad.any() for scale in scales.values())
    optimizer.step()
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    model.eval()
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, before, atol=1e-4)


def test_evaluation_before_does_not_hide_them(llama, turn, ids):
    model = turn(get_peft_model(llama(), OFTConfig(oft_block_size=8, target_modules="all-linear"))).eval()
    with torch.no_grad():
        before = [model(ids).logits for _ in range(3)][-1]
        for scale in free_magnitudes(model).values():
            scale.mul_(1.5)
        assert not torch.allclose(model(ids).logits, before, atol=1e-3)


def test_the_file_holds_rotation_and_magnitude(llama, turn, ids, tmp_path):
    config = OFTConfig(
        oft_block_size=8, target_modules=["q_proj", "up_proj"],
        layer_settings={"model.layers.0.self_attn.q_proj": {"magnitude": False, "block_size": 4}},
    )  # fmt: skip
    model = turn(get_peft_model(llama(), config))
    with torch.no_grad():
        for number, scale in enumerate(free_magnitudes(model).values()):
            scale.add_(0.1 * torch.randn(scale.shape, generator=torch.Generator().manual_seed(number)))
        expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert again.peft_config["default"].magnitude
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, expected, rtol=0, atol=0)
        merged = again.merge_and_unload()
        # float32 rounding through two layers of products
        torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_magnitudes_that_are_there_are_kept(llama, turn):
    model = turn(get_peft_model(llama(), OFTConfig(oft_block_size=8, target_modules=["q_proj"], magnitude=True)))
    held = [layer.oft_magnitude["default"].weight.clone() for layer in model.modules() if isinstance(layer, OFTLayer)]
    assert all(torch.equal(a, b) for a, b in zip(free_magnitudes(model).values(), held, strict=True))


def test_convolutions_and_other_adapters(turn):
    base = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    model = turn(get_peft_model(base, OFTConfig(r=1, target_modules=["0", "2"])))
    model.add_adapter("other", OFTConfig(r=2, target_modules=["2"], magnitude=True))
    before = model(x)
    scales = free_magnitudes(model)
    assert [len(scale) for scale in scales.values()] == [8, 4]
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    assert not model.base_model.model[2].oft_magnitude["other"].weight.requires_grad


def test_a_model_without_the_adapter_is_refused(llama):
    with pytest.raises(ConfigError, match="no layer that it rotates"):
        free_magnitudes(llama())
    model = get_peft_model(llama(), OFTConfig(oft_block_size=8, target_modules=["q_proj"]))
    with pytest.raises(ConfigError, match="'other'"):
        free_magnitudes(model, "other")
