"""An adapter file is read once for each operation: what is in memory then is enough, the file may go."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import orthotune
from orthotune import PeftModel, load_adapter
from orthotune.operations import adapter as adapter_module
from orthotune.operations import combine, convert, distance, export, identify, inspect, load, merge
from orthotune.operations.adapter import read_once
from orthotune.operations.checkpoint import stream
from tests.support.checkpoint_models import EXPERTS, llama, mixtral, save_adapter, save_base


@pytest.fixture
def vanishing(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Removes every adapter when it has been read; lists what was."""
    gone: list[Path] = []

    def read(path: str | Path, **options: Any) -> Any:
        found = read_once(path, **options)
        found.tensors()
        shutil.rmtree(path)
        gone.append(Path(path))
        return found

    for module in (combine, convert, distance, export, identify, inspect, load, merge, stream):
        assert module.read_once is read_once
        monkeypatch.setattr(module, "read_once", read)
    return gone


OPERATIONS: dict[str, Callable[[Path, Path, Path], Any]] = {
    "load": lambda adapter, base, out: load_adapter(AutoModelForCausalLM.from_pretrained(base), adapter),
    "inspect": lambda adapter, base, out: orthotune.inspect(adapter, base=base),
    "convert": lambda adapter, base, out: orthotune.convert(adapter, out, "orthotune"),
    "convert to diff": lambda adapter, base, out: orthotune.convert(
        adapter, out.with_suffix(".safetensors"), "diff", base=base
    ),
    "merge": lambda adapter, base, out: orthotune.merge(adapter, out, base=base),
    "merge at a strength": lambda adapter, base, out: orthotune.merge(adapter, out, base=base, strength=0.5),
    "merge from file to file": lambda adapter, base, out: orthotune.merge(adapter, out, base=base, stream=True),
    "export to lora": lambda adapter, base, out: orthotune.export(adapter, out, base, "lora", rank=2),
    "export to diff": lambda adapter, base, out: orthotune.export(
        adapter, out.with_suffix(".safetensors"), base, "diff"
    ),
    "combine": lambda adapter, base, out: orthotune.combine([adapter], [0.5], out),
    "combine to lora": lambda adapter, base, out: orthotune.combine(
        [adapter], [1.0], out, "svd_lora", base=base, rank=2
    ),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_reads_its_adapter_once(name: str, vanishing: list[Path], tmp_path: Path) -> None:
    base = save_base(llama(), tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    OPERATIONS[name](adapter, base, tmp_path / "out")
    assert vanishing == [adapter]


CASES: dict[str, dict[str, Any]] = {
    "linear": {"target_modules": ["q_proj", "down_proj"]},
    "task": {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM"},
    "scaled, out": {"target_modules": ["q_proj"], "side": "out", "scaled": True, "magnitude": True},
    "a pattern": {"target_modules": r".*layers\.1\..*_proj", "block_size_pattern": {"down_proj": 8}},
    "biases": {"target_modules": ["q_proj"], "bias": "oft_only"},
    "modules saved entirely": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "a series": {"target_modules": ["q_proj"], "use_cayley_neumann": True, "num_cayley_neumann_terms": 3},
    "experts": {"target_modules": ["q_proj"], "target_parameters": EXPERTS},
}


def _base(name: str, folder: Path) -> Path:
    return save_base(mixtral() if name == "experts" else llama(attention_bias=True), folder)


@pytest.mark.parametrize("meta", [False, True], ids=["", "meta"])
@pytest.mark.parametrize("name", CASES)
def test_the_model_is_what_pefts_loading_makes(name: str, meta: bool, tmp_path: Path) -> None:
    base = _base(name, tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", **CASES[name])

    def model() -> Any:
        loaded = AutoModelForCausalLM.from_pretrained(base)
        return loaded.to("meta") if meta else loaded

    options: dict[str, Any] = {"low_cpu_mem_usage": True, "torch_device": "cpu"} if meta else {}
    expected = PeftModel.from_pretrained(model(), str(adapter), is_trainable=True, **options)
    found, report = load_adapter(model(), adapter)
    assert type(found) is type(expected) and report.matched
    assert found.peft_config["default"].to_dict() == expected.peft_config["default"].to_dict()
    one, other = (m.peft_config["default"].load_context for m in (found, expected))
    assert one == other and one.stored_numbers
    assert found.active_adapters == expected.active_adapters and found.training == expected.training
    one, other = (dict(m.named_parameters()) for m in (found, expected))
    assert one.keys() == other.keys()
    for key, parameter in other.items():
        assert one[key].requires_grad == parameter.requires_grad, key
        assert one[key].dtype == parameter.dtype and one[key].device == parameter.device, key
        assert parameter.device.type == "meta" or torch.equal(one[key], parameter), key


def test_a_model_of_another_task_is_what_pefts_loading_makes(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    fields = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_labels": 3, "pad_token_id": 0}

    def model() -> Any:
        torch.manual_seed(0)
        return LlamaForSequenceClassification(LlamaConfig(**fields, **heads))

    config = orthotune.OFTConfig(oft_block_size=4, target_modules=["q_proj"], task_type="SEQ_CLS", init_weights=False)
    orthotune.get_peft_model(model(), config).save_pretrained(tmp_path / "adapter")
    expected = PeftModel.from_pretrained(model(), str(tmp_path / "adapter"), is_trainable=True)
    found, _ = load_adapter(model(), tmp_path / "adapter")
    assert type(found) is type(expected) is not PeftModel
    assert found.peft_config["default"].to_dict() == expected.peft_config["default"].to_dict()
    one, other = (dict(m.named_parameters()) for m in (found, expected))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert all(one[key].requires_grad == other[key].requires_grad for key in other)


def test_a_second_adapter_is_what_pefts_loading_makes(tmp_path: Path) -> None:
    base = _base("", tmp_path / "base")
    first = save_adapter(base, tmp_path / "first", target_modules=["q_proj"])
    second = save_adapter(base, tmp_path / "second", target_modules=["down_proj"], modules_to_save=["lm_head"])

    def model() -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(first))

    expected = model()
    expected.load_adapter(str(second), "second", is_trainable=True)
    expected.set_adapter("second")
    found, _ = load_adapter(model(), second, "second")
    assert found.active_adapters == ["second"]
    assert found.peft_config["second"].to_dict() == expected.peft_config["second"].to_dict()
    one, other = (dict(m.named_parameters()) for m in (found, expected))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in other)
    assert all(one[key].requires_grad == other[key].requires_grad for key in other)


def test_the_series_of_a_file_without_a_version_is_asked_for_on_a_model_too(tmp_path: Path) -> None:
    base = _base("", tmp_path / "base")
    adapter = save_adapter(base, tmp_path / "adapter", **CASES["a series"])
    for series in ("current", "legacy"):
        found, _ = load_adapter(AutoModelForCausalLM.from_pretrained(base), adapter, series=series)
        state = orthotune.read_adapter(adapter, orthotune.ReadOptions(series=series))
        (name, held), *_ = state.layers.items()
        layer = found.base_model.model.get_submodule(name)
        # float32 sums of products of entries below 1
        torch.testing.assert_close(layer.rotations("default")[""](), held.rotation(), rtol=0, atol=1e-6)


def test_tensors_are_read_when_they_are_asked_for_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    base = _base("", tmp_path / "base")
    path = save_adapter(base, tmp_path / "adapter", target_modules=["q_proj"])
    asked: list[str] = []
    opened = adapter_module.open_adapter

    def counting(path: Path) -> Any:
        file = opened(path)
        return replace(file, load=lambda names: asked.extend(names) or file.load(names))

    monkeypatch.setattr(adapter_module, "open_adapter", counting)
    read = read_once(path)
    read.tensors(), read.tensors()
    assert sorted(asked) == sorted(read.file.shapes)
