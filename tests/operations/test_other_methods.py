"""A LoRA as the tool's own runs write it is merged, inspected and measured; for the rest there are words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from orthotune import inspect, merge
from orthotune.errors import AdapterFileError, ConfigError
from orthotune.operations.other_methods import other_method
from tests.support.tiny_text import make_model, save_model


def _call(*words: Any) -> Any:
    from orthotune.cli.main import app

    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a trained LoRA of several ranks and scales, and its base beside it."""
    home = tmp_path_factory.mktemp("lora")
    base = save_model(home / "base", "float32")
    model = make_model()
    model.name_or_path = str(base)
    config = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"], rank_pattern={"down_proj": 2},
        alpha_pattern={"down_proj": 3}, task_type="CAUSAL_LM",
    )  # fmt: skip
    tuned = get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    (home / "run").mkdir()
    tuned.save_pretrained(home / "run" / "adapter")
    (home / "run" / "run.json").write_text("{}")
    return home


@pytest.mark.parametrize("place", ["run", "run/adapter"])
def test_merged_is_the_tuned_model(lora: Path, tmp_path: Path, place: str) -> None:
    merged = AutoModelForCausalLM.from_pretrained(merge(lora / place, tmp_path / "merged")).eval()
    tuned = PeftModel.from_pretrained(make_model(), lora / "run" / "adapter").eval()
    tokens = torch.arange(12).view(2, 6)
    # float32, 32 features: the order of additions differs
    torch.testing.assert_close(merged(tokens).logits, tuned(tokens).logits, rtol=0, atol=1e-5)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_what_is_inspected_is_what_the_layers_hold(lora: Path) -> None:
    facts = inspect(lora / "run")
    tuned = PeftModel.from_pretrained(make_model(), lora / "run" / "adapter")
    for row in facts["layers"]:
        layer = tuned.base_model.model.get_submodule(row["layer"])
        assert (row["rank"], row["scale"]) == (layer.r["default"], layer.scaling["default"])
        assert row["change"] == pytest.approx(layer.get_delta_weight("default").norm().item(), rel=1e-5)
    assert facts["peft_type"] == "LORA" and len(facts["layers"]) == 4
    assert facts["parameters"] == sum(p.numel() for n, p in tuned.named_parameters() if "lora_" in n)
    shown = _call("inspect", lora / "run")
    assert shown.exit_code == 0 and "no rotations" in shown.stdout, shown.stderr
    assert json.loads(_call("inspect", lora / "run", "--json").stdout) == facts


def test_drift_of_a_lora(lora: Path, tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text('{"text": "some old text"}\n')
    done = _call("evaluate", "drift", lora / "run", "--data", tmp_path / "old.jsonl", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["kl"] > 1e-4, done.stderr


@pytest.mark.parametrize("given", [{"stream": True}, {"strength": 0.5}, {"dequantize": True}])
def test_arguments_of_rotations_are_refused(lora: Path, tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))} with an adapter of the method LORA"):
        merge(lora / "run", tmp_path / "merged", **given)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "line",
    [("convert", "RUN", "OUT.safetensors", "--to", "orthotune"), ("combine", "RUN:1", "--out", "OUT")],
    ids=lambda line: line[0],
)
def test_what_has_no_meaning_for_a_lora_is_said(lora: Path, tmp_path: Path, line: tuple[str, ...]) -> None:
    done = _call(*(word.replace("RUN", str(lora / "run")).replace("OUT", str(tmp_path / "out")) for word in line))
    known = "the others hold rotations" if line[0] == "convert" else "evaluate drift and rewind take a LoRA"
    assert done.exit_code == 2 and known in done.stderr.replace("\n", " ")


def test_a_lora_of_text_is_identified(lora: Path) -> None:
    done = _call("identify", lora / "run")
    assert done.exit_code == 0 and "LoRA of rank 4" in done.stdout and "PEFT, LoRA" in done.stdout


def test_a_third_method(tmp_path: Path, lora: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    assert other_method(tmp_path) == "IA3" and other_method(lora / "base") is None
    with pytest.raises(AdapterFileError, match="an adapter of the method IA3"):
        inspect(tmp_path)
