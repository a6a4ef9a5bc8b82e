"""The published examples run as printed, with the import swapped."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from orthotune import OFTConfig, OFTModel, get_peft_model


def test_gpt2_with_dropout(gpt2, ids, turn):
    config = OFTConfig(r=8, target_modules=["c_attn"], module_dropout=0.1)
    base = gpt2(ids).logits
    model = get_peft_model(gpt2, config).eval()
    assert torch.equal(model(ids).logits, base)
    turn(model)
    assert not torch.allclose(model(ids).logits, base)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits), "module_dropout must do something in training"
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_stable_diffusion_text_encoder_and_unet(ids):
    config_te = OFTConfig(
        r=8,
        target_modules=["k_proj", "q_proj", "v_proj", "out_proj", "fc1", "fc2"],
        module_dropout=0.0,
        init_weights=True,
    )
    config_unet = OFTConfig(
        r=8,
        target_modules=[
            "proj_in",
            "proj_out",
            "to_k",
            "to_q",
            "to_v",
            "to_out.0",
            "ff.net.0.proj",
            "ff.net.2",
        ],
        module_dropout=0.0,
        init_weights=True,
    )
    torch.manual_seed(0)
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=100,
            max_position_embeddings=16, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
    ).eval()  # fmt: skip
    x, hidden = torch.randn(1, 4, 8, 8), text(ids[:1]).last_hidden_state
    before = unet(x, 3, hidden).sample
    text, unet = OFTModel(text, config_te, "default"), OFTModel(unet, config_unet, "default")
    after = text(ids[:1]).last_hidden_state
    # A fresh rotation is the identity; only the order of summation inside a product may differ.
    torch.testing.assert_close(after, hidden, atol=1e-6, rtol=0)
    torch.testing.assert_close(unet(x, 3, hidden).sample, before, atol=1e-5, rtol=0)
    unet.train()
    unet(x, 3, after).sample.square().mean().backward()
    adapted = {n: p for n, p in unet.named_parameters() if "oft_" in n}
    assert adapted and all(p.grad is not None and p.grad.abs().max() > 0 for p in adapted.values())


def test_some_layers_only(llama):
    config = OFTConfig(r=8, layers_to_transform=[0, 1, 2, 3], layers_pattern="layers")
    model = get_peft_model(llama(num_hidden_layers=5), config)
    names = [n for n, m in model.named_modules() if hasattr(m, "oft_block_size")]
    assert {name.split(".layers.")[1][0] for name in names} == set("0123")


def test_two_adapters_and_switching(llama, ids, turn):
    model = get_peft_model(llama(), OFTConfig(r=8, target_modules=["q_proj", "v_proj"]), adapter_name="first").eval()
    model.add_adapter("second", OFTConfig(r=16, target_modules=["q_proj"]))
    turn(model)
    first = model(ids).logits
    model.set_adapter("second")
    second = model(ids).logits
    assert not torch.allclose(first, second)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trainable and all(".second." in n for n in trainable)
    model.set_adapter("first")
    assert torch.equal(model(ids).logits, first)
    model.delete_adapter("first")
    model.set_adapter("second")
    assert torch.equal(model(ids).logits, second)


@pytest.mark.parametrize("kwargs", [{"r": 8}, {"oft_block_size": 16, "coft": True, "eps": 1e-2}, {"block_share": True}])
def test_one_import_line_from_peft(llama, ids, kwargs):
    model = get_peft_model(llama(), OFTConfig(task_type="CAUSAL_LM", **kwargs))
    loss = model(ids, labels=ids).loss
    loss.backward()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    optimizer.step()
    assert model(ids, labels=ids).loss < loss
