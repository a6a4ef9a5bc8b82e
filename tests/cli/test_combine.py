"""``orthotune combine`` and ``--strength``: files that load like any other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import small_llama

#: float32, two layers of 16 features: the order of additions differs
CLOSE: dict[str, float] = {"rtol": 0, "atol": 1e-5}


@pytest.fixture
def pair(trained: Path) -> Path:
    """A second adapter, ``other``, of another block size and partly other layers."""
    from orthotune import OFTConfig, get_peft_model

    tuned = get_peft_model(small_llama(), OFTConfig(oft_block_size=8, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    tuned.save_pretrained(trained / "other")
    return trained


def both(home: Path) -> Any:
    from orthotune import PeftModel

    model = PeftModel.from_pretrained(small_llama(), home / "adapter", adapter_name="A")
    model.load_adapter(str(home / "other"), "B")
    return model.eval()


def logits(model: Any, home: Path) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.load(home / "expected.pt")[0]).logits


def alone(home: Path, name: str) -> torch.Tensor:
    from orthotune import PeftModel

    return logits(PeftModel.from_pretrained(small_llama(), home / name).eval(), home)


@pytest.mark.parametrize("kind", ["geodesic", "product", "tangent"])
def test_files_combine_as_adapters_in_memory_do(call: Callable, pair: Path, kind: str) -> None:
    done = call("combine", f"{pair / 'adapter'}:0.7", f"{pair / 'other'}:-0.3", "--out", pair / "C", "--type", kind)
    assert done.exit_code == 0, done.stderr
    model = both(pair)
    model.base_model.set_adapter(model.add_weighted_adapter(["A", "B"], [0.7, -0.3], combination_type=kind))
    torch.testing.assert_close(alone(pair, "C"), logits(model, pair), **CLOSE)
    assert json.loads((pair / "C" / "adapter_config.json").read_text())["peft_type"] == "ORTHOTUNE"
    if kind == "product":
        assert "the first acts first" in done.stdout


def test_ties(call: Callable, pair: Path) -> None:
    words = ("combine", f"{pair / 'adapter'}:0.5", pair / "other", "-o", pair / "C", "--type", "ties")
    assert "a share with ties, and only with ties" in call(*words).stderr
    assert not (pair / "C").exists()
    assert call(*words, "--density", "0.5").exit_code == 0
    assert torch.isfinite(alone(pair, "C")).all()


def test_a_lora_of_the_sum(call: Callable, pair: Path) -> None:
    from peft import PeftModel

    done = call(
        "combine", f"{pair / 'adapter'}:0.7", f"{pair / 'other'}:0.3", "-o", pair / "L", "--type", "svd_lora",
        "--base", pair / "base", "--rank", "16",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    expected = small_llama()
    model = both(pair).base_model.model
    for name, weight in (("A", 0.7), ("B", 0.3)):
        for key, layer in model.named_modules():
            if name in getattr(layer, "oft_settings", {}):
                with torch.no_grad():
                    expected.get_submodule(key).weight += weight * layer.get_delta_weight(name)
    found = PeftModel.from_pretrained(small_llama(), pair / "L").eval()
    torch.testing.assert_close(logits(found, pair), logits(expected.eval(), pair), **CLOSE)


@pytest.mark.parametrize(
    "words, message",
    [
        (["{}/adapter:much", "{}/other"], "ADAPTER:WEIGHT"),
        (["{}/adapter:nan", "{}/other"], "finite"),
        (["{}/adapter", "{}/other", "--rank", "3"], "with svd_lora"),
        (["{}/adapter", "{}/nothing"], "nothing"),
    ],
)
def test_refusals(call: Callable, pair: Path, words: list[str], message: str) -> None:
    done = call("combine", *(word.format(pair) for word in words), "--out", pair / "C")
    assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (pair / "C").exists()


@pytest.mark.parametrize("words", [[], ["--stream"]], ids=["memory", "stream"])
@pytest.mark.parametrize("kind", ["geodesic", "linear"])
def test_merging_at_a_strength(call: Callable, trained: Path, words: list[str], kind: str) -> None:
    from orthotune import PeftModel

    merged = trained / "merged"
    done = call("merge", trained / "adapter", "-o", merged, "--strength", "0.5", "--strength-kind", kind, *words)
    assert done.exit_code == 0, done.stderr
    model = PeftModel.from_pretrained(small_llama(), trained / "adapter").eval()
    model.set_scale("default", 0.5, kind)
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(merged).eval()
    torch.testing.assert_close(logits(found, trained), logits(model, trained), **CLOSE)
    assert (logits(found, trained) - torch.load(trained / "expected.pt")[1]).abs().max() > 1e-3


def test_exports_at_a_strength(call: Callable, trained: Path) -> None:
    words = ("--base", trained / "base", "--strength", "0")
    assert call("export", trained / "adapter", trained / "dense", "--to", "dense", *words).exit_code == 0
    from safetensors.torch import load_file

    base, dense = (load_file(trained / name / "model.safetensors") for name in ("base", "dense"))
    assert all(torch.equal(dense[name], tensor) for name, tensor in base.items())
    done = call("merge", trained / "adapter", "-o", trained / "x", "--strength", "nan")
    assert done.exit_code == 2 and "a finite number" in done.stderr


@pytest.mark.parametrize("words", [[], ["--stream"]], ids=["memory", "stream"])
def test_no_strength_of_what_is_held_whole(call: Callable, trained: Path, words: list[str]) -> None:
    from orthotune import OFTConfig, get_peft_model

    tuned = get_peft_model(small_llama(), OFTConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]))
    tuned.save_pretrained(trained / "more")
    done = call("merge", trained / "more", "-b", trained / "base", "-o", trained / "x", "--strength", "0.5", *words)
    assert done.exit_code == 2 and "that the adapter replaces" in done.stderr
    assert not (trained / "x").exists()
