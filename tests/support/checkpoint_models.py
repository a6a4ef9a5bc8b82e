"""Small base models on disk and adapters for them, and what merging in memory gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from orthotune import OFTConfig, PeftModel, get_peft_model
from tests.support.contract_cases import randomize

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def llama(tied: bool = False, **fields: Any) -> nn.Module:
    """Two layers whose sizes differ on purpose."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2} | fields
    config = LlamaConfig(
        vocab_size=40, num_key_value_heads=1, bos_token_id=0, eos_token_id=1, tie_word_embeddings=tied, **sizes
    )
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    """Weights stored (in, out), some of them square; the output layer is tied."""
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=40, n_inner=24, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config)


def mixtral() -> nn.Module:
    """Experts that the model stacks and its files keep apart."""
    config = MixtralConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        num_local_experts=11, num_experts_per_tok=2, vocab_size=32, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def save_base(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    """A checkpoint of ``model`` with random numbers, cut into shards of the given size."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def save_adapter(base: Path, folder: Path, **fields: Any) -> Path:
    """An adapter that turns every block of its targets."""
    config = OFTConfig(**{"oft_block_size": 4} | fields)
    tuned = randomize(get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype="auto"), config))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad and "oft_" not in name:
                parameter.add_(0.5)
    tuned.save_pretrained(folder)
    return folder


def merged_in_memory(base: Path, adapter: Path) -> nn.Module:
    """What ``merge_and_unload`` gives."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    return PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)


def same_model(found: nn.Module, expected: nn.Module) -> None:
    """The same parameters, bit for bit."""
    ours, theirs = _all(found), _all(expected)
    assert ours.keys() == theirs.keys()
    assert all(ours[name].dtype == value.dtype for name, value in theirs.items())
    different = [name for name, value in theirs.items() if not torch.equal(ours[name], value)]
    assert not different, {n: (ours[n] - theirs[n]).abs().max() for n in different}


def _all(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters(remove_duplicate=False))
