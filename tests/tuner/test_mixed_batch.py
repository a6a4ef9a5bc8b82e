"""``adapter_names`` through PEFT's host: calls, generations, beams, many adapters."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from orthotune import OFTConfig, get_peft_model
from orthotune.layers.base import OFTLayer


def _adapted(base, turn, names, **fields):
    model = get_peft_model(base, OFTConfig(target_modules="all-linear", oft_block_size=8, **fields), names[0])
    for name in names[1:]:
        model.add_adapter(name, OFTConfig(target_modules="all-linear", oft_block_size=8, **fields))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "oft_" in key:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("beams", [1, 2])
def test_a_generation_is_that_of_each_adapter_alone(llama, ids, turn, beams):
    model = _adapted(llama(), turn, ["a", "b"])
    names, options = ["b", "__base__", "a"], {"max_new_tokens": 6, "do_sample": False, "num_beams": beams}
    found = model.generate(input_ids=ids, adapter_names=names, attention_mask=torch.ones_like(ids), **options)
    for row, name in enumerate(names):
        if name == "__base__":
            with model.disable_adapter():
                expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        else:
            model.set_adapter(name)
            expected = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        width = min(found.shape[1], expected.shape[1])
        assert torch.equal(found[row, :width], expected[row, :width])
    assert not [m for m in model.modules() if isinstance(m, OFTLayer) and m._forward_pre_hooks]


def test_saved_modules_follow_their_rows(llama, ids, turn):
    model = _adapted(llama(), turn, ["a", "b"], modules_to_save=["lm_head"])
    with torch.no_grad():
        for name in ("a", "b"):
            head = model.base_model.model.lm_head.modules_to_save[name]
            head.weight.mul_(2 if name == "a" else 3)
        found = model(input_ids=ids, adapter_names=["b", "__base__", "a"]).logits
        for row, name in ((0, "b"), (2, "a")):
            model.set_adapter(name)
            torch.testing.assert_close(found[row], model(input_ids=ids).logits[row])
        with model.disable_adapter():
            torch.testing.assert_close(found[1], model(input_ids=ids).logits[1])


def test_one_product_serves_every_adapter_of_a_layer(llama, ids, turn, monkeypatch):
    from orthotune.layers import mixed_batch

    calls = []
    products = mixed_batch._products
    monkeypatch.setattr(mixed_batch, "_products", lambda *a: calls.append(1) or products(*a))
    model = _adapted(llama(), turn, ["a", "b", "c"])
    model(input_ids=ids, adapter_names=["a", "b", "c"])
    assert len(calls) == 2 * 7  # layers times projections


def test_many_adapters_cost_their_own_numbers_and_no_more(llama, turn, tmp_path):
    model = _adapted(llama(), turn, ["a"])
    model.save_pretrained(tmp_path)
    base = {id(p): p.data_ptr() for n, p in model.named_parameters() if "oft_" not in n}
    one = sum(p.numel() for n, p in model.named_parameters() if ".a." in n)
    for number in range(20):
        model.load_adapter(str(tmp_path / "a"), f"more{number}")
    held = sum(p.numel() for n, p in model.named_parameters() if "oft_" in n)
    assert held == 21 * one
    assert base == {id(p): p.data_ptr() for n, p in model.named_parameters() if "oft_" not in n}
    rotations = [m for n, m in model.named_modules() if "more" in n and hasattr(m, "memo")]
    assert rotations and all(rotation.served() is None for rotation in rotations)  # computed when first used


def test_the_protocol_is_that_of_lora(llama, ids):
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]), "a").eval()
    ours = get_peft_model(llama(), OFTConfig(target_modules=["q_proj"], oft_block_size=8), "a").eval()
    for names in (["a", "b", "a"], ["a"]):
        for each in (model, ours):
            with pytest.raises(ValueError):
                each(input_ids=ids, adapter_names=names)
    for each in (model, ours):
        with pytest.raises(ValueError, match="training mode"):
            each.train()(input_ids=ids, adapter_names=["a", "a", "a"])


def test_rows_whose_adapter_saved_no_module_have_that_of_the_base(llama, turn, ids):
    fields = {"target_modules": ["q_proj"], "oft_block_size": 8}
    model = get_peft_model(llama(), OFTConfig(modules_to_save=["lm_head"], **fields), "a").eval()
    model.add_adapter("b", OFTConfig(**fields))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "oft_" in name or "modules_to_save" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    alone = []
    for name in ("a", "b"):
        model.set_adapter(name)
        alone.append(model(input_ids=ids[:1]).logits)
    for active in ("a", "b"):
        model.set_adapter(active)
        found = model(input_ids=ids[:1].repeat(2, 1), adapter_names=["a", "b"]).logits
        torch.testing.assert_close(found, torch.cat(alone))
