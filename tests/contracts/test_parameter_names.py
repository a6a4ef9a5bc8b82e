"""Code that copies, filters or counts the parameters of an adapter by their names finds all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from tests.support.contract_cases import Case, cases, rotation_parameters

EVERY_PART = cases("together")


@pytest.mark.parametrize("case", EVERY_PART, ids=str)
def test_a_reference_adapter_copied_by_names_computes_the_same(case: Case) -> None:
    """As TRL's DPO, KTO, GRPO and RLOO trainers copy the adapter that they start from."""
    model, inputs = case.trained(), case.inputs()
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    with torch.no_grad():
        expected = model(*inputs)
        model.set_adapter("ref")
        assert torch.equal(model(*inputs), expected)


@pytest.mark.parametrize("case", EVERY_PART, ids=str)
def test_the_name_of_the_adapter_stands_between_dots_and_is_not_in_the_file(case: Case, tmp_path: Path) -> None:
    model = case.trained()
    names = rotation_parameters(model)
    assert all(".default." in name for name in names)
    state = get_peft_model_state_dict(model)
    in_file = {name.replace(".default", "").replace("oft_magnitude.weight", "oft_magnitude") for name in names}
    assert set(state) == in_file
    model.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "adapter_model.safetensors")) == in_file


@pytest.mark.parametrize("case", EVERY_PART, ids=str)
def test_the_state_of_a_model_with_the_former_names_is_loaded(case: Case) -> None:
    model, other = case.trained(), case.fresh()
    former = {
        k.replace("oft_magnitude.default.weight", "oft_magnitude.default"): v for k, v in model.state_dict().items()
    }
    other.load_state_dict(former)
    with torch.no_grad():
        assert torch.equal(other(*case.inputs()), model(*case.inputs()))
