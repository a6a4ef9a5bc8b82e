"""Weights that a merge takes apart are apart in every config, live and in files, and reload to the same numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune import OFTConfig, PeftModel, get_peft_model
from orthotune.operations.checkpoint.stream import merge_checkpoint
from tests.support.contract_cases import randomize
from tests.support.tied_models import TIED, fields, logits, make

#: PEFT's own words; ours about models that scale.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Input and output embeddings are no longer tied", "ignore:.*scales its output"
)
WAYS = ("embedding", "head", "saved_embedding", "saved_head")
CASES = [(name, way) for name in TIED for way in WAYS] + [(name, "third") for name in TIED if TIED[name].third]


def _config(name: str, way: str) -> OFTConfig:
    tied = TIED[name]
    ends = {"embedding": tied.embedding, "head": tied.head, "third": tied.third}
    if way in ends:
        return OFTConfig(oft_block_size=4, target_modules=[ends[way]])
    other = {"gpt2": "c_proj", "encoder_decoder": "c_proj", "bert": "query"}.get(name, "q_proj")
    other = "q" if name in ("t5", "umt5", "switch") else other
    saved = ends[way.removeprefix("saved_")]
    return OFTConfig(oft_block_size=4, target_modules=[other], modules_to_save=[saved])


def _tuned(name: str, way: str) -> Any:
    tuned = randomize(get_peft_model(make(name), _config(name, way)).eval())
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if "modules_to_save" in key:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)) * 0.2)
    return tuned


def _close(found: Tensor, expected: Tensor) -> None:
    # float32, a dozen layers whose products are summed in another order after the merge
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def _check_fields(name: str, config: Any, file: bool) -> None:
    found = fields(config)
    tied = TIED[name]
    if tied.scales:
        assert found.get("top", True) is True
    elif file or not tied.forced:
        assert found["top"] is False and not any(found.values()), found


@pytest.mark.parametrize(("name", "way"), CASES)
def test_a_merged_model_says_apart_everywhere_and_comes_back(name: str, way: str, tmp_path: Path) -> None:
    tuned = _tuned(name, way)
    plain, turned = logits(make(name)), logits(tuned)
    assert (turned - plain).abs().max() > 5e-3 * plain.abs().max()  # fifty times what rounding may do
    merged = tuned.merge_and_unload()
    _close(logits(merged), turned)
    _check_fields(name, merged.config, file=True)
    merged.save_pretrained(tmp_path)
    _check_fields(name, json.loads((tmp_path / "config.json").read_text()), file=True)
    again = type(merged).from_pretrained(tmp_path).eval()
    _check_fields(name, again.config, file=False)
    _close(logits(again), turned)
    _same_numbers(again, merged)


def _same_numbers(found: nn.Module, expected: nn.Module) -> None:
    """Where a tensor lies in memory decides in which order a product is summed: one rounding, of numbers below 2."""
    ours = dict(found.named_parameters(remove_duplicate=False))
    for name, value in expected.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(ours[name], value, rtol=0, atol=torch.finfo(torch.float32).eps, msg=name)


@pytest.mark.parametrize("way", ["embedding", "head"])
@pytest.mark.parametrize("name", TIED)
def test_unmerging_gives_the_config_back(name: str, way: str) -> None:
    tuned = _tuned(name, way)
    live = tuned.base_model.model
    before, turned = live.config.to_dict(), logits(tuned)
    for _ in range(2):
        tuned.merge_adapter()
        _check_fields(name, live.config, file=True)
        _close(logits(tuned), turned)
        tuned.unmerge_adapter()
        assert live.config.to_dict() == before
    tuned.merge_adapter()
    assert tuned.unload().config.to_dict() == before


@pytest.mark.parametrize("name", TIED)
def test_what_stays_tied_says_so(name: str, tmp_path: Path) -> None:
    other = {"gpt2": "c_proj", "encoder_decoder": "c_proj", "bert": "query"}.get(name, "q_proj")
    other = "q" if name in ("t5", "umt5", "switch") else other
    tuned = randomize(get_peft_model(make(name), OFTConfig(oft_block_size=4, target_modules=[other])).eval())
    before = fields(tuned.base_model.model.config)
    merged = tuned.merge_and_unload()
    assert fields(merged.config) == before
    merged.save_pretrained(tmp_path)
    _close(logits(type(merged).from_pretrained(tmp_path).eval()), logits(merged))


@pytest.mark.parametrize(("name", "way"), CASES)
def test_files_say_what_memory_says(name: str, way: str, tmp_path: Path) -> None:
    base = make(name)
    base.save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "config.json"
    kept = json.loads(path.read_text())
    kept.pop("scale_decoder_outputs", None)  # which files on the hub lack
    path.write_text(json.dumps(kept))
    tuned = _tuned(name, way)
    turned = logits(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    (tmp_path / "out").mkdir()
    merge_checkpoint(tmp_path / "adapter", tmp_path / "base", tmp_path / "out")
    again = type(base).from_pretrained(tmp_path / "out").eval()
    _close(logits(again), turned)
    _check_fields(name, json.loads((tmp_path / "out" / "config.json").read_text()), file=True)
    _check_fields(name, again.config, file=False)
    memory = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    _same_numbers(again, memory.merge_and_unload().eval())


@pytest.mark.parametrize("name", ["llama", "llava", "gemma3"])
def test_weights_that_were_apart_before_are_apart_in_every_config(name: str, tmp_path: Path) -> None:
    base = make(name)
    with torch.no_grad():
        base.lm_head.weight = nn.Parameter(base.lm_head.weight + 0.1)
    base.save_pretrained(tmp_path)
    loaded = type(base).from_pretrained(tmp_path)  # with a config that says tied
    tuned = randomize(get_peft_model(loaded, OFTConfig(oft_block_size=4, target_modules=["q_proj"])).eval())
    _check_fields(name, tuned.merge_and_unload().config, file=True)


class _Named(nn.Module):
    """A model whose config is a plain object of somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.config = {"tie_word_embeddings": True, "size": 12}
        self.layer = nn.Linear(12, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_config_that_is_not_of_transformers_is_left_alone() -> None:
    tuned = randomize(get_peft_model(_Named(), OFTConfig(oft_block_size=4, target_modules=["layer"])))
    assert tuned.merge_and_unload().config == {"tie_word_embeddings": True, "size": 12}
