"""Examples that are packed into one row are computed as if each were alone, or packing is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from orthotune.errors import RecipeError
from orthotune.metrics.text_loss import TokenRow, row_losses
from orthotune.runs.quiet import quiet
from orthotune.text.data import Examples
from orthotune.text.sft_trainer import build_trainer, sft_config
from tests.support.tiny_text import make_tokenizer

SMALL = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}  # fmt: skip
WIDE = SMALL | {"intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", WIDE),
    "gemma2, a window of 4": ("Gemma2Config", WIDE | {"head_dim": 16, "sliding_window": 4}),
    "gpt2": ("GPT2Config", {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64,
                            "bos_token_id": 0, "eos_token_id": 0}),
    "mixtral": ("MixtralConfig", WIDE | {"num_local_experts": 3, "router_aux_loss_coef": 0.0}),
}  # fmt: skip
#: Models without a mask between examples: positions from the attention mask, ALiBi, a state.
READING: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("OPTConfig", SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", {"vocab_size": 258, "hidden_size": 32, "n_layer": 2, "n_head": 2}),
    "mamba": ("MambaConfig", {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 1}),
}
TEXTS = ["one example", "and another", "xyz", "a much longer example 12345", "q"]


def _model(kind: str, values: dict[str, Any], attention: str) -> Any:
    torch.manual_seed(1)
    config = getattr(transformers, kind)(**values)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)


def _trainer(folder: Path, model: Any, packing: str = "bfd_split") -> Any:
    examples = Examples([{"text": text} for text in TEXTS], "text", "here")
    arguments = sft_config(
        folder, packing=packing, data_format="text", schedule="constant", bf16=False, max_length=48, max_steps=1,
        per_device_train_batch_size=2,
    )  # fmt: skip
    with quiet():
        return build_trainer(model, make_tokenizer(), arguments, examples, {}, None)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_examples_have_the_loss_that_each_has_alone(tmp_path: Path, name: str, attention: str) -> None:
    kind, values = CONFIGS[name]
    if name.startswith("gemma2") and attention == "sdpa":
        pytest.skip("transformers has no sdpa for it")
    model = _model(kind, values, attention)
    trainer = _trainer(tmp_path, model)
    assert max(len(row["seq_lengths"]) for row in trainer.train_dataset) > 1
    batches = list(trainer.get_train_dataloader())
    model.eval()
    tokenizer = make_tokenizer()
    rows = [TokenRow(ids, ids) for ids in (tokenizer(f"{text}<end>")["input_ids"] for text in TEXTS)]
    alone = row_losses(model, rows)
    with torch.no_grad():
        # TRL's loss is a mean over the tokens of a batch.
        packed = [
            (trainer.compute_loss(model, dict(one)).item(), int((one["labels"] != -100).sum())) for one in batches
        ]
    assert sum(count for _, count in packed) == sum(count for _, count in alone)
    # Sums over 50 tokens of 5.5 nats in float32, in another order: a hundred roundings of 2e-5.
    assert sum(mean * count for mean, count in packed) == pytest.approx(sum(nats for nats, _ in alone), abs=2e-3)


@pytest.mark.parametrize("name", READING)
def test_models_that_do_not_keep_examples_apart_are_refused(tmp_path: Path, name: str) -> None:
    model = _model(*READING[name], "eager").train()
    with pytest.raises(RecipeError, match=f"packing=bfd_split for a model of the kind {name}. .*packing=none"):
        _trainer(tmp_path, model)
    assert model.training
    assert _trainer(tmp_path, model, "none") and _trainer(tmp_path, model, "wrapped")


@pytest.mark.parametrize("name", [*CONFIGS, *READING])
def test_a_model_in_half_precision_is_told_apart_too(tmp_path: Path, name: str) -> None:
    # Rounding in bfloat16, 0.8 %, is as large as what the examples of some models read of each other.
    model = _model(*(CONFIGS | READING)[name], "eager").to(torch.bfloat16)
    if name in CONFIGS:
        assert _trainer(tmp_path, model)
    else:
        with pytest.raises(RecipeError, match="packing=bfd_split"):
            _trainer(tmp_path, model)
