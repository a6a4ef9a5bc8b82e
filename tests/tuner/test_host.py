"""What PEFT's host, transformers, diffusers and TRL do with an adapter."""

from __future__ import annotations

import copy

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import PeftModel, inject_adapter_in_model
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError, MergeError


def test_configs_of_peft_itself_are_accepted(llama, ids, turn):
    model = get_peft_model(llama(), peft.OFTConfig(oft_block_size=8, target_modules=["q_proj"]))
    model.add_adapter("more", peft.OFTConfig(r=6, oft_block_size=0, target_modules=["q_proj"]))
    assert all(isinstance(c, OFTConfig) and c.use_cayley_neumann for c in model.peft_config.values())


def test_inject_adapter_in_model(llama, ids, turn):
    model = llama()
    base = model(ids).logits
    inject_adapter_in_model(OFTConfig(r=4, target_modules=["q_proj"]), model)
    assert torch.equal(model(ids).logits, base)
    assert not torch.allclose(turn(model)(ids).logits, base)


def test_transformers_add_adapter_save_and_load(llama, ids, turn, tmp_path):
    model = llama()
    base = model(ids).logits
    model.add_adapter(OFTConfig(r=4, target_modules=["q_proj"]))
    expected = turn(model)(ids).logits
    model.save_pretrained(str(tmp_path))
    other = llama()
    other.load_adapter(str(tmp_path))
    assert torch.equal(other(ids).logits, expected)
    other.disable_adapters()
    assert torch.equal(other(ids).logits, base)


def test_diffusers_add_adapter():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
    x, hidden = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 32)
    before = unet(x, 3, hidden).sample
    unet.add_adapter(OFTConfig(target_modules=["to_q", "conv1", "conv_in"]))
    torch.testing.assert_close(unet(x, 3, hidden).sample, before, atol=1e-5, rtol=0)  # order of summation
    unet.enable_gradient_checkpointing()
    unet.train()
    unet(x, 3, hidden).sample.square().mean().backward()
    assert all(p.grad.abs().max() > 0 for n, p in unet.named_parameters() if "oft_" in n)


def test_trl_takes_the_config(llama, tmp_path):
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {"<pad>": 0, "a": 1, "<eos>": 2, "b": 3, "c": 4}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    trainer = SFTTrainer(
        model=llama(),
        args=SFTConfig(
            output_dir=str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=2,
            report_to="none",
            use_cpu=True,
            learning_rate=1e-2,
            save_strategy="no",
            disable_tqdm=True,
            bf16=False,
        ),
        train_dataset=Dataset.from_dict({"text": ["a b c"] * 4}),
        processing_class=tokenizer,
        peft_config=OFTConfig(r=4, target_modules=["q_proj"]),
    )
    trainer.train()
    moved = [p for n, p in trainer.model.named_parameters() if "oft_R" in n]
    assert moved and all(p.abs().max() > 0 for p in moved)


def test_merge_and_unload_options(llama, ids, turn):
    model = turn(get_peft_model(llama(), OFTConfig(r=4, target_modules=["q_proj", "up_proj"]))).eval()
    model.add_adapter("other", OFTConfig(r=6, target_modules=["q_proj"]))
    expected = model(ids).logits
    assert torch.equal(copy.deepcopy(model).unload()(ids).logits, llama()(ids).logits)
    merged = copy.deepcopy(model).merge_and_unload(progressbar=True, safe_merge=True, adapter_names=["default"])
    # one rounding to float32 of each turned weight
    torch.testing.assert_close(merged(ids).logits, expected, atol=2e-6, rtol=0)
    assert not any("oft" in n for n, _ in merged.named_parameters())


def test_safe_merge_of_a_broken_adapter_changes_no_layer(llama, ids, turn):
    model = turn(get_peft_model(llama(), OFTConfig(r=4, target_modules=["q_proj"]))).eval()
    last = model.base_model.model.model.layers[1].self_attn.q_proj
    last.oft_R["default"].weight.data[0, 0] = float("nan")
    before = {n: p.clone() for n, p in model.named_parameters() if "base_layer" in n}
    for call in (lambda: model.merge_and_unload(safe_merge=True), lambda: model.merge_adapter(safe_merge=True)):
        with pytest.raises(MergeError, match=r"\['default'\].*layers\.1\.self_attn\.q_proj"):
            call()
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_modules_to_save_and_bias(llama, ids, turn, tmp_path):
    config = OFTConfig(r=4, target_modules=["q_proj"], bias="oft_only", modules_to_save=["lm_head"])
    model = get_peft_model(llama(attention_bias=True), config)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("lm_head.modules_to_save" in n for n in trainable)
    biases = {n for n in trainable if n.endswith("bias")}
    assert len(biases) == 2 and all("q_proj.base_layer.bias" in n for n in biases)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    expected = model(ids).logits
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(llama(attention_bias=True), str(tmp_path))
    assert torch.equal(again(ids).logits, expected)


def test_bias_all(llama):
    model = get_peft_model(llama(attention_bias=True), OFTConfig(r=4, target_modules=["q_proj"], bias="all"))
    assert sum(n.endswith("bias") and p.requires_grad for n, p in model.named_parameters()) == 8


def test_parameters_are_float32_on_a_bfloat16_base_unless_asked_otherwise(llama):
    model = get_peft_model(llama().bfloat16(), OFTConfig(r=4, target_modules=["q_proj"]))
    assert {p.dtype for n, p in model.named_parameters() if "oft_" in n} == {torch.float32}
    config = OFTConfig(r=4, target_modules=["q_proj"], magnitude=True)
    model = get_peft_model(llama().bfloat16(), config, autocast_adapter_dtype=False)
    assert {p.dtype for n, p in model.named_parameters() if "oft_" in n} == {torch.bfloat16}


def test_a_tied_embedding_is_merged_alone(llama, ids, turn):
    config = OFTConfig(oft_block_size=8, target_modules=["embed_tokens"])
    model = get_peft_model(llama(tie_word_embeddings=True), config)
    expected = turn(model).eval()(ids).logits
    head = model.base_model.model.lm_head.weight.clone()
    model.merge_adapter()
    torch.testing.assert_close(model(ids).logits, expected, atol=2e-6, rtol=0)  # one rounding of the merged rows
    assert torch.equal(model.base_model.model.lm_head.weight, head)
    model.unmerge_adapter()
    inner = model.base_model.model
    assert inner.lm_head.weight is inner.model.embed_tokens.base_layer.weight, "unmerge ties them again"
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, expected, atol=2e-6, rtol=0)
    assert merged.config.tie_word_embeddings is False, "saved and loaded again, the two must stay apart"


def test_a_mixed_batch_of_another_length_is_refused():
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), OFTConfig(r=2, target_modules=["0"]))
    with pytest.raises(ConfigError, match="adapter_names"):
        model.base_model.model[0](torch.zeros(3, 4), adapter_names=["default", "__base__"])
