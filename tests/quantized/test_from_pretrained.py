"""Quantized models as transformers loads them: training, files, merging, recipes and the command line."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM

from orthotune import OFTConfig, PeftModel, get_peft_model
from orthotune.errors import RecipeError
from orthotune.quantized.loading_options import STORED, WHILE_LOADING, _installed
from orthotune.quantized.registry import library_of
from orthotune.text.causal_model import load_model
from tests.quantized.layer_checks import error
from tests.support.tiny_text import save_model, texts, write_jsonl

WORDS = [word for word, (module, _) in WHILE_LOADING.items() if _installed(module)]
#: transformers saves models in these; it refuses optimum-quanto's.
SAVED = [word for word in WORDS if not word.startswith("quanto")]
needs_bnb = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not here")
each = pytest.mark.parametrize("word", WORDS or [pytest.param("", marks=pytest.mark.skip("no library is here"))])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), dtype="float32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "new.jsonl", texts(24, "blue"))


def tokens() -> torch.Tensor:
    return torch.randint(2, 258, (3, 12), generator=torch.Generator().manual_seed(1))


def adapted(base: Path, word: str, dtype: torch.dtype = torch.float32) -> Any:
    model = get_peft_model(load_model(str(base), dtype, word), OFTConfig(oft_block_size=8, target_modules="all-linear"))
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens()).logits


@each
def test_an_adapter_is_saved_and_loaded_on_a_quantized_base(word: str, base: Path, tmp_path: Path) -> None:
    model = adapted(base, word)
    assert len(model.peft_config["default"].target_modules) == 14  # seven in each of two layers, without the head
    model.save_pretrained(tmp_path)
    assert torch.equal(
        logits(PeftModel.from_pretrained(load_model(str(base), torch.float32, word), tmp_path).eval()), logits(model)
    )


@each
def test_a_dense_merge_is_an_ordinary_model(word: str, base: Path, tmp_path: Path) -> None:
    model = adapted(base, word)
    expected = logits(model)
    dense = model.merge_and_unload(dequantize=True).eval()
    assert not [module for module in dense.modules() if library_of(module)]
    for said in ("hf_quantizer", "quantization_method", "is_loaded_in_4bit", "is_loaded_in_8bit", "is_quantized"):
        assert not getattr(dense, said, None)
    assert not hasattr(dense.config, "quantization_config")
    # bitsandbytes rounds the inputs to int8 in evaluation, in fourteen layers one after another.
    assert error(logits(dense), expected) < (3e-2 if word == "int8" else 1e-5)
    dense.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(again), logits(dense))


@pytest.mark.parametrize("word", SAVED or [pytest.param("", marks=pytest.mark.skip("no library is here"))])
def test_a_merge_in_place_is_saved_quantized(word: str, base: Path, tmp_path: Path) -> None:
    merged = adapted(base, word).merge_and_unload().eval()
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    quantized = [module for module in again.modules() if library_of(module)]
    assert len(quantized) == 14
    # Compared under an untouched adapter: by itself bitsandbytes reads 4-bit layers of these widths wrong on a CPU.
    both = [
        get_peft_model(model, OFTConfig(oft_block_size=8, target_modules="all-linear")).eval()
        for model in (again, merged)
    ]
    assert error(*map(logits, both)) < 1e-6


@each
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_and_kbit_training_change_no_gradient(word: str, reentrant: bool, base: Path) -> None:
    found = []
    for prepared in (False, True):
        model = load_model(str(base), torch.float32, word)
        if prepared:
            model = prepare_model_for_kbit_training(model, gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            if not reentrant or not model.is_gradient_checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": reentrant})
                model.enable_input_require_grads()
        model = get_peft_model(model, OFTConfig(oft_block_size=8, target_modules="all-linear")).train()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*got no gradient.*")
            model(tokens(), labels=tokens()).loss.backward()
        found.append([p.grad for name, p in model.named_parameters() if "oft_" in name])
    assert len(found[0]) == 14
    # The same computation twice; float32 sums may be ordered otherwise.
    assert all(error(a, b) < 1e-5 for a, b in zip(*found, strict=True))


def _settings(base: Path, data: Path, **more: Any) -> Any:
    from orthotune.recipes.settings import SFTSettings

    given = {
        "model": str(base), "data": str(data), "steps": 3, "batch_size": 2, "max_length": 32, "block_size": 8,
        "target_modules": ["q_proj", "down_proj"], "old_data": str(data),
    }  # fmt: skip
    return SFTSettings(**(given | more))


@each
def test_the_recipe_trains_on_a_quantized_base(word: str, base: Path, data: Path, tmp_path: Path) -> None:
    from orthotune.recipes import sft

    settings = _settings(base, data, quantization=word, output=tmp_path / "run", gradient_checkpointing=True)
    record = sft.run(settings, say=lambda _: None, bar=False)
    assert record.settings["quantization"] == word
    assert record.gain is not None and record.gain > 0
    assert record.weights.orthogonality_error is not None and record.weights.orthogonality_error < 1e-5
    # A rotation keeps the energy of the dequantized weights; float32 sums over pairs of neurons.
    assert record.weights.energy_change is not None and record.weights.energy_change < 1e-4
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.float32}


@needs_bnb
def test_the_command_line_merges_a_quantized_base(base: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from orthotune.cli.main import app

    model = adapted(base, "nf4")
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    words = ["merge", str(tmp_path / "adapter"), "--quantization", "nf4", "--out"]
    for name, more, limit in (("dense", ["--dequantize"], 1e-5), ("quantized", [], 0.4)):
        done = CliRunner().invoke(app, [*words, str(tmp_path / name), *more])
        assert done.exit_code == 0, done.output
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name).eval()
        assert bool([m for m in again.modules() if library_of(m)]) == (name == "quantized")
        # nf4 itself errs by 0.1 in each of fourteen layers.
        again = get_peft_model(again, OFTConfig(oft_block_size=8, target_modules="all-linear")).eval()
        assert error(logits(again), logits(model)) < limit


@pytest.mark.skipif("quanto-int8" not in WORDS, reason="optimum-quanto is not here")
def test_the_command_line_tells_what_cannot_be_saved_quantized(base: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from orthotune.cli.main import app

    model = adapted(base, "quanto-int8")
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    words = ["merge", str(tmp_path / "adapter"), "--quantization", "quanto-int8", "--out", str(tmp_path / "merged")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code != 0 and "--dequantize" in done.output
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("word", STORED)
def test_a_checkpoint_that_is_not_stored_so_is_refused(word: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orthotune.quantized import loading_options

    monkeypatch.setattr(loading_options, "_installed", lambda _: True)
    with pytest.raises(RecipeError, match=f"quantization={word} .* not quantized"):
        load_model(str(base), torch.float32, word)


def test_a_missing_library_is_named_with_its_extra(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orthotune.quantized import loading_options

    monkeypatch.setattr(loading_options, "_installed", lambda _: False)
    with pytest.raises(RecipeError, match=r"bitsandbytes is not installed.*orthotune\[quant-bnb\]"):
        load_model(str(base), torch.float32, "nf4")


def test_an_unknown_word_is_refused(base: Path) -> None:
    with pytest.raises(RecipeError, match="quantization=int3"):
        load_model(str(base), torch.float32, "int3")


def test_full_finetuning_of_a_quantized_base_is_refused(base: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="quantization has no meaning for method=full"):
        _settings(base, data, quantization="nf4", method="full", block_size=None, target_modules=None)


def test_every_word_has_its_extra() -> None:
    import re

    extras = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    for _, extra in (WHILE_LOADING | STORED).values():
        assert re.search(rf"^{extra} = ", extras, flags=re.MULTILINE)
