"""Runs with an optimizer of bitsandbytes, whose state is stored in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from tests.support.tiny_text import make_tokenizer

bnb = pytest.importorskip("bitsandbytes")


class _State(TrainerCallback):
    """The dtypes of the optimizer's state by size of the parameter; an accident before a step."""

    def __init__(self, accident: int = -1) -> None:
        self.accident, self.kind = accident, ""
        self.dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step == self.accident:
            raise KeyboardInterrupt

    def on_step_end(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        optimizer = getattr(seen["optimizer"], "optimizer", seen["optimizer"])
        self.kind = type(optimizer).__module__
        for parameter, values in optimizer.state.items():
            self.dtypes[parameter.numel() >= 4096].add(values["state1"].dtype)


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A block of 128 has 8,128 parameters: bitsandbytes keeps tensors of fewer than 4,096 in float32."""
    tokenizer, folder = make_tokenizer(), tmp_path_factory.mktemp("wide")
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "lion_8bit"])
def test_the_state_has_8_bits_and_a_resumed_run_ends_with_the_same_bits(
    optim: str, wide_model: Path, text_path: Path, old_path: Path, tmp_path: Path
) -> None:
    values = {
        "model": str(wide_model), "data": str(text_path), "old_data": str(old_path), "batch_size": 2, "max_length": 32,
        "learning_rate": 1e-2, "warmup": 0, "block_size": 128, "rotation": {"block_size_fallback": "nearest"},
        "eval_every": 9, "steps": 3, "save_every": 1, "sample_prompts": [], "optim": optim,
    }  # fmt: skip

    def run(name: str, *callbacks: TrainerCallback, **more: Any) -> dict[str, torch.Tensor]:
        output = tmp_path / name
        settings = SFTSettings(**values, **more, output=output)
        sft.run(settings, say=lambda _: None, callbacks=callbacks, bar=False)
        return load_file(output / "adapter" / "adapter_model.safetensors")

    look = _State()
    through = run("through", look)
    assert look.kind.startswith("bitsandbytes.") and look.dtypes[True] == {torch.uint8}
    assert look.dtypes[False] <= {torch.float32}
    with pytest.raises(KeyboardInterrupt):
        run("cut", _State(accident=2))
    resumed = run("cut", resume="auto")
    assert through.keys() == resumed.keys()
    assert all(torch.equal(through[name], resumed[name]) for name in through)
    assert any(tensor.abs().max() > 0 for tensor in through.values())
