"""What is saved and loaded computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from orthotune import OFTConfig
from tests.support.contract_cases import TRANSFORMS, Case, cases, rotation_parameters, transformed


@pytest.mark.parametrize("case", cases("exact", "legacy", "together") + transformed(), ids=str)
def test_a_saved_adapter_gives_the_same_output_when_loaded(case: Case, tmp_path: Path) -> None:
    model, inputs = case.trained(), case.inputs()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.base(), tmp_path)
    with torch.no_grad():  # torch adds up in another order where a gradient is asked for; then bit for bit
        if case.options in TRANSFORMS:  # thin products round by where their factors lie in memory
            case.close(loaded(*inputs), model(*inputs), roundings=2)
        else:
            assert torch.equal(loaded(*inputs), model(*inputs))
    bases = [name for name, _ in model.named_buffers() if name.endswith(".basis")]
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == len(rotation_parameters(model)) + len(bases)
    restored, given = OFTConfig.from_pretrained(str(tmp_path)), model.peft_config["default"]
    told = ("side", "magnitude", "scaled", "coft", "eps", "block_share", "use_cayley_neumann", "neumann_series")
    assert [getattr(restored, name) for name in told] == [getattr(given, name) for name in told]


@pytest.mark.parametrize("case", cases("exact", dtypes=(torch.bfloat16, torch.float64)), ids=str)
def test_loading_beside_another_adapter_leaves_it_alone(case: Case, tmp_path: Path) -> None:
    model, inputs = case.trained(), case.inputs()
    model.save_pretrained(tmp_path)
    other = case.fresh()
    with torch.no_grad():
        plain = other(*inputs)
        other.load_adapter(str(tmp_path), "loaded")
        assert torch.equal(other(*inputs), plain)
        other.set_adapter("loaded")
        assert torch.equal(other(*inputs), model(*inputs))
