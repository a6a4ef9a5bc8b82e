"""A merged folder has everything that the folder of its base has, whichever way it is merged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orthotune import OFTConfig, get_peft_model
from orthotune.operations.export import export
from orthotune.operations.merge import merge
from tests.support.tiny_text import save_model


def _encoder(folder: Path) -> Path:
    """A sentence encoder: pooling, and a dense layer with weights of its own."""
    save_model(folder, "float32", chat=True)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    (folder / "modules.json").write_text(json.dumps([{"path": path, "type": kind} for path, kind in modules]))
    for name in ("1_Pooling", "2_Dense", "onnx", "checkpoint-5", "assets/deep"):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text("{}")
    for name in ("2_Dense", "onnx", "checkpoint-5"):
        save_file({"linear.weight": torch.ones(2, 2)}, folder / name / "model.safetensors")
    for name in ("preprocessor_config.json", "processor_config.json", "special.py", "quantize_config.json"):
        (folder / name).write_text("{}")
    return folder


WAYS: dict[str, Callable[[Path, Path, Path], object]] = {
    "merge": lambda adapter, base, out: merge(adapter, out, base=base),
    "merge --stream": lambda adapter, base, out: merge(adapter, out, base=base, stream=True),
    "export --to dense": lambda adapter, base, out: export(adapter, out, base, "dense"),
}


@pytest.mark.parametrize("way", WAYS)
def test_nothing_but_weights_is_left_out(way: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, out = _encoder(tmp_path / "base"), tmp_path / "out"
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), OFTConfig(target_modules=["q_proj"], oft_block_size=8)
    )
    tuned.save_pretrained(tmp_path / "adapter")
    WAYS[way](tmp_path / "adapter", base, out)
    kept = {path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file()}
    unmerged = {name for name in kept if name.startswith(("onnx/", "checkpoint-5/")) or "quant" in name}
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert kept - unmerged <= found and not unmerged & found
    assert load_file(out / "2_Dense" / "model.safetensors")["linear.weight"].sum() == 4
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    AutoModelForCausalLM.from_pretrained(out)
