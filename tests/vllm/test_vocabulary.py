"""Rotations of the embedding and the head, tied and not, beside their merged models in the same engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orthotune.errors import ConfigError, UnsupportedLayerError
from tests.vllm.engines import (
    PROMPTS,
    Answer,
    answers,
    make_adapter,
    make_lora,
    request,
    scores,
    unload,
)  # fmt: skip

pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("base", [False, True], ids=["untied", "tied"], indirect=True, scope="module"),
]
#: float32: products in another order, over two layers of 128 features
CLOSE = 1e-3
ADAPTERS: dict[str, dict[str, Any]] = {
    "table": {"target_modules": ["embed_tokens", "q_proj"], "magnitude": True},
    "head": {"target_modules": ["lm_head", "down_proj"], "magnitude": True},
    "both": {"target_modules": ["embed_tokens", "lm_head"], "oft_block_size": 16},
    "reflections": {
        "target_modules": ["embed_tokens", "lm_head"], "transform": "reflections", "oft_block_size": None, "r": 4,
    },
}  # fmt: skip


def said(engine: Any) -> tuple[list[Answer], list[float]]:
    """Of each merged model: its answers, and its scores of a prompt."""
    return answers(engine, PROMPTS), scores(engine, PROMPTS[0])


def test_embedding_and_head_in_one_batch_are_their_merged_models(
    engine: Any, adapters: dict[str, Path], merged: dict[str, tuple[list[Answer], list[float]]]
) -> None:
    unload(engine)
    plain = answers(engine, PROMPTS)
    requests = [request(n + 1, path) for n, path in enumerate(adapters.values())]
    mixed = answers(engine, PROMPTS, [*requests, None])
    for number, (name, got) in enumerate(zip(adapters, mixed, strict=False)):
        expected = merged[name][0][number]
        assert got.tokens == expected.tokens and got.off(expected) < CLOSE, name
        assert got.off(plain[number]) > 10 * CLOSE, f"{name} changes nothing"
    assert mixed[-1] == plain[-1], "the row of the base has other bits"


def test_a_lora_beside_them_has_its_bits(
    engine: Any, base: Path, adapters: dict[str, Path], merged: dict[str, tuple[list[Answer], list[float]]],
    tmp_path: Path,
) -> None:  # fmt: skip
    lora = request(7, make_lora(base, tmp_path / "lora"))
    unload(engine)
    alone = answers(engine, PROMPTS, [None, lora, None, None, None])
    both = answers(engine, PROMPTS, [request(3, adapters["both"]), lora, request(2, adapters["head"]), None, None])
    # The rows of one product differ by rounding with what is beside them where LoRA's own kernels sum.
    assert both[1].tokens == alone[1].tokens and both[1].off(alone[1]) < CLOSE
    assert both[3:] == alone[3:], "rows of the base have other bits"
    assert both[0].off(merged["both"][0][0]) < CLOSE and both[2].off(merged["head"][0][2]) < CLOSE


def test_prompts_are_scored_under_the_adapter(
    engine: Any, adapters: dict[str, Path], merged: dict[str, tuple[list[Answer], list[float]]]
) -> None:
    for number, (name, path) in enumerate(adapters.items()):
        found = scores(engine, PROMPTS[0], request(number + 1, path))
        assert max(abs(a - b) for a, b in zip(found, merged[name][1], strict=True)) < CLOSE, name
    plain = scores(engine, PROMPTS[0])
    assert max(abs(a - b) for a, b in zip(plain, merged["head"][1], strict=True)) > 10 * CLOSE


def test_the_head_is_said_when_its_outputs_are_rotated(engine: Any, base: Path, tmp_path: Path) -> None:
    path = make_adapter(base, tmp_path / "out", 9, merge=False, target_modules=["lm_head"], side="out",
                        oft_block_size=2)  # fmt: skip
    with pytest.raises(UnsupportedLayerError, match="layer 'lm_head' unmerged.*of the outputs of a head"):
        engine.llm_engine.add_lora(request(500, path))


def test_a_table_of_another_base_is_refused(engine: Any, adapters: dict[str, Path], tmp_path: Path) -> None:
    """PEFT saves the table with the adapter on it; one with other numbers belongs to another base."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in adapters["both"].glob("adapter_*"):
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    table = tensors[key] if key in tensors else torch.zeros(4, 128)
    save_file({**tensors, key: table + 1}, weights, metadata={"format": "pt"})
    with pytest.raises(UnsupportedLayerError, match=r"1 further tensors: .*embed_tokens\.base_layer\.weight"):
        engine.llm_engine.add_lora(request(501, folder))
    wrong = make_adapter(_narrow(tmp_path / "narrow"), tmp_path / "wrong", 9, merge=False,
                         target_modules=["embed_tokens"])  # fmt: skip
    with pytest.raises(ConfigError, match=r"embed_tokens'. Found: a rotation of 64 features. Needed: 128"):
        engine.llm_engine.add_lora(request(502, wrong))


def _narrow(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.support.tiny_text import make_tokenizer

    tokenizer = make_tokenizer()
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=1,
                    num_attention_heads=2)
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder
