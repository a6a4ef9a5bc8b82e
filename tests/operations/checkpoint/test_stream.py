"""What is streamed from file to file is what merging in memory gives, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from orthotune.operations.checkpoint.stream import merge_checkpoint
from tests.support.checkpoint_models import (
    EXPERTS,
    gpt2,
    llama,
    merged_in_memory,
    mixtral,
    same_model,
    save_adapter,
    save_base,
)

LINEAR = ["q_proj", "down_proj"]
CASES: dict[str, tuple[Callable[[], nn.Module], torch.dtype, dict[str, Any]]] = {
    "in": (llama, torch.float32, {"target_modules": LINEAR}),
    "out-bfloat16": (llama, torch.bfloat16, {"target_modules": LINEAR, "side": "out", "magnitude": True}),
    "all-bfloat16": (llama, torch.bfloat16, {"target_modules": "all-linear", "magnitude": True, "coft": True}),
    "shared-scaled": (llama, torch.float16, {"target_modules": LINEAR, "block_share": True, "scaled": True}),
    "neumann": (llama, torch.float32, {"target_modules": LINEAR, "use_cayley_neumann": True}),
    "legacy": (
        llama, torch.bfloat16,
        {"target_modules": LINEAR, "use_cayley_neumann": True, "neumann_series": "legacy"},
    ),
    "embedding": (llama, torch.bfloat16, {"target_modules": ["embed_tokens", "lm_head"], "magnitude": True}),
    "whole-modules": (llama, torch.bfloat16, {"target_modules": LINEAR, "modules_to_save": ["lm_head"]}),
    "transposed": (gpt2, torch.float32, {"target_modules": ["c_attn", "c_proj"]}),
    "transposed-out": (gpt2, torch.bfloat16, {"target_modules": ["c_proj"], "side": "out", "magnitude": True}),
    "experts": (mixtral, torch.float32, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    "experts-out": (
        mixtral, torch.bfloat16,
        {"target_modules": [], "target_parameters": EXPERTS, "side": "out", "oft_block_size": 16,
         "block_size_fallback": "nearest", "magnitude": True},
    ),
    "experts-coft": (
        mixtral, torch.float32,
        {"target_modules": [], "target_parameters": EXPERTS, "coft": True, "eps": 0.3, "block_share": True},
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied", "ignore:The block size does not")
@pytest.mark.parametrize("name", CASES)
def test_streamed_is_what_memory_gives(name: str, tmp_path: Path) -> None:
    build, dtype, fields = CASES[name]
    base = save_base(build(), tmp_path / "base", dtype, shard="6KB")
    adapter = save_adapter(base, tmp_path / "adapter", **fields)
    out = tmp_path / "out"
    out.mkdir()
    seen: list[tuple[int, int, str]] = []
    merge_checkpoint(adapter, base, out, lambda *step: seen.append(step))
    expected = merged_in_memory(base, adapter)
    same_model(AutoModelForCausalLM.from_pretrained(out, dtype="auto"), expected)
    before = AutoModelForCausalLM.from_pretrained(base, dtype="auto").state_dict()
    assert any(not torch.equal(before[key], value) for key, value in expected.state_dict().items())
    files = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(files) > 1
    assert seen == [(number, len(files), file) for number, file in enumerate(files, 1)]
    assert {path.name for path in out.iterdir()} == {path.name for path in base.iterdir()}


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["q_proj"]], ids=str)
@pytest.mark.parametrize("shard", ["12KB", "5GB"])
@pytest.mark.filterwarnings("ignore:Input and output embeddings are no longer tied")
def test_tied_embeddings_part_only_when_one_turns(targets: list[str], shard: str, tmp_path: Path) -> None:
    base = save_base(llama(tied=True), tmp_path / "base", torch.bfloat16, shard)
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=targets)
    (tmp_path / "out").mkdir()
    merge_checkpoint(adapter, base, tmp_path / "out")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    same_model(merged, merged_in_memory(base, adapter))
    tied = targets == ["q_proj"]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is tied
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) is tied


def test_the_index_tells_what_is_there(tmp_path: Path) -> None:
    base = save_base(llama(tied=True), tmp_path / "base", torch.bfloat16, "3KB")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["embed_tokens"])
    (tmp_path / "out").mkdir()
    merge_checkpoint(adapter, base, tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    found = {p.name: load_file(p) for p in (tmp_path / "out").glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in found.items() for name in tensors}
    every = [tensor for tensors in found.values() for tensor in tensors.values()]
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in every)
    assert index["metadata"]["total_parameters"] == sum(t.numel() for t in every)
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
        # what does not turn keeps its bytes
        before = load_file(base / path.name)
        kept = [name for name in before if "embed_tokens" not in name]
        assert all(torch.equal(before[name], found[path.name][name]) for name in kept)


def test_names_without_the_prefix_of_the_model(tmp_path: Path) -> None:
    """As GPT-2 lies on the hub: ``h.0...`` for the model's ``transformer.h.0...``."""
    base = save_base(gpt2().transformer, tmp_path / "base")
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"architectures": ["GPT2LMHeadModel"]}))
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["c_proj"])
    (tmp_path / "out").mkdir()
    merge_checkpoint(adapter, base, tmp_path / "out")
    same_model(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), merged_in_memory(base, adapter))
    assert "h.0.attn.c_proj.weight" in load_file(tmp_path / "out" / "model.safetensors")
