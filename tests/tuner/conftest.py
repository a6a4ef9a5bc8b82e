"""Tiny real models, made from configs."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.fixture
def ids():
    return torch.randint(0, 100, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def llama():
    """Makes the same tiny Llama at every call."""

    def build(**changes):
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes})).eval()

    return build


@pytest.fixture
def llama_fields():
    """The fields that ``llama`` builds from, for another process."""
    return dict(LLAMA)


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    config = GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=100, n_positions=32, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def turn():
    """Moves every rotation of a model away from the identity, the same way at every call."""

    def fill(model, std=0.2):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "oft_" in name:
                    parameter.add_(std * torch.randn(parameter.shape, generator=generator))
        return model

    return fill
