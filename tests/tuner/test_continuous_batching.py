"""transformers' continuous batching: every request under the active adapter; adapters by request are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError
from tests.support.contract_cases import randomize, seeded

ContinuousBatchingConfig = pytest.importorskip("transformers.generation.configuration_utils").__dict__.get(
    "ContinuousBatchingConfig"
)
PROMPTS = [[5, 6, 7, 8, 9], [11, 12, 13], [20, 21, 22, 23]]


def _model() -> Any:
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    with seeded(0):
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.3)
    targets = ["q_proj", "v_proj", "down_proj"]
    return randomize(get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=targets))).eval()


def _one_by_one(model: Any) -> list[list[int]]:
    found = [model.generate(input_ids=torch.tensor([p]), max_new_tokens=5, do_sample=False) for p in PROMPTS]
    return [tokens[0, len(p) :].tolist() for tokens, p in zip(found, PROMPTS, strict=True)]


@pytest.mark.skipif(ContinuousBatchingConfig is None, reason="this version of transformers has no config of batching")
def test_requests_run_under_the_active_adapter() -> None:
    model = _model()
    expected = _one_by_one(model)
    with model.disable_adapter():
        assert _one_by_one(model) != expected
    options = GenerationConfig(max_new_tokens=5, do_sample=False, eos_token_id=1, pad_token_id=1)
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    found = model.generate_batch(
        inputs=PROMPTS, generation_config=options, continuous_batching_config=small, warmup=False
    )
    assert [found[f"req_{number}"].generated_tokens for number in range(3)] == expected


def test_adapters_by_request_are_refused() -> None:
    with pytest.raises(ConfigError, match="adapter_names in generate_batch"):
        _model().generate_batch(inputs=PROMPTS, adapter_names=["default", "__base__", "default"])
