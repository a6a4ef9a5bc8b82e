from __future__ import annotations

import pytest
from peft import LoraConfig
from transformers import LlamaForSequenceClassification

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import RecipeError
from orthotune.runs.adapters import lora_config, matching_rank, rotation_config, trainable
from tests.support.tiny_text import make_model


def test_sizes_and_ball_are_passed_on_only_when_said() -> None:
    default = rotation_config("all-linear")
    assert isinstance(default, OFTConfig)
    assert (default.oft_block_size, default.block_size_fallback, default.coft) == (32, "nearest", False)
    assert rotation_config("all-linear", block_size=8).block_size_fallback == "error"
    ball = rotation_config(["q_proj"], r=4, coft=True, eps=0.25, options={"side": "out"})
    assert (ball.r, ball.coft, ball.eps, ball.side, ball.task_type) == (4, True, 0.25, "out", "CAUSAL_LM")


def test_an_unknown_option() -> None:
    with pytest.raises(RecipeError, match=r"rotation.scalde. Found: .* Did you mean 'scaled'"):
        rotation_config("all-linear", options={"scalde": True})


@pytest.mark.parametrize(("targets", "block_size"), [("all-linear", 8), (["q_proj", "down_proj"], 16)])
def test_the_matching_rank_is_the_nearest(targets: str | list[str], block_size: int) -> None:
    model = make_model()
    rotation = rotation_config(targets, block_size=block_size)
    rank, parameters, wanted = matching_rank(model, rotation)

    def count(config: OFTConfig | LoraConfig) -> int:
        return trainable(get_peft_model(make_model(), config))[0]

    assert count(rotation) == wanted
    assert count(lora_config(targets, rank)) == parameters
    away = abs(parameters - wanted)
    assert away <= abs(count(lora_config(targets, rank + 1)) - wanted)
    assert rank == 1 or away <= abs(count(lora_config(targets, rank - 1)) - wanted)
    # Counting touches neither the model nor the config.
    assert trainable(model) == (sum(p.numel() for p in model.parameters()),) * 2


def test_a_head_that_is_trained_beside_the_adapter_does_not_count_for_the_rank() -> None:
    def make() -> LlamaForSequenceClassification:
        config = make_model().config
        config.num_labels = 100
        return LlamaForSequenceClassification(config)

    rotation = rotation_config(["q_proj"], block_size=8, task="SEQ_CLS")
    rank, parameters, wanted = matching_rank(make(), rotation)
    head = 32 * 100
    assert wanted == trainable(get_peft_model(make(), rotation))[0] == head + 2 * 4 * 28
    assert (rank, parameters) == (2, head + 2 * 2 * 64)  # 224 parameters of OFT, 128 at each rank
    assert trainable(get_peft_model(make(), lora_config(["q_proj"], rank, task="SEQ_CLS")))[0] == parameters


def test_alpha_is_twice_the_rank() -> None:
    assert lora_config("all-linear", 3).lora_alpha == 6
    assert lora_config("all-linear", 3, alpha=4.0).lora_alpha == 4.0


def test_further_lora_options() -> None:
    assert lora_config("all-linear", 3, options={"use_dora": True}).use_dora
    with pytest.raises(RecipeError, match=r"lora.use_doar. Found: no such option.* Did you mean 'use_dora'"):
        lora_config("all-linear", 3, options={"use_doar": True})
    # PEFT would train it beside a residual: angles, drift and strength would be of another base.
    with pytest.raises(RecipeError, match="takes a part out of the frozen weights"):
        lora_config("all-linear", 3, options={"init_lora_weights": "pissa_niter_4"})
