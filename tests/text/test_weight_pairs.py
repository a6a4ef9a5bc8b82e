from __future__ import annotations

import copy

import pytest
import torch

from orthotune import get_peft_model
from orthotune.runs.adapters import lora_config, rotation_config
from orthotune.text.weight_pairs import weight_change
from tests.support.tiny_text import make_model


def _trained(config: object) -> torch.nn.Module:
    torch.manual_seed(1)
    model = get_peft_model(make_model(), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("side", ["in", "out"])
def test_rotations_keep_energy_on_either_side(side: str) -> None:
    model = _trained(rotation_config("all-linear", block_size=16, options={"side": side}))
    before = copy.deepcopy(model.state_dict())
    change = weight_change(model)
    # Merged in float32: some roundings of its own size, far below what LoRA does.
    assert change.orthogonality_error < 5e-6
    assert change.energy_change < 1e-5 and change.angle_change < 1e-5
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_scales_and_series_show() -> None:
    series = {"use_cayley_neumann": True}
    assert weight_change(_trained(rotation_config("all-linear", options=series))).orthogonality_error > 0.01


def test_lora_changes_angles_and_its_base_is_put_back() -> None:
    model = _trained(lora_config("all-linear", 2))
    before = copy.deepcopy(model.state_dict())
    change = weight_change(model)
    assert change.orthogonality_error is None
    assert change.energy_change > 1e-3 and change.angle_change > 1e-2
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_full_finetuning_is_held_against_the_pretrained_model() -> None:
    model, base = make_model(), make_model()
    assert weight_change(model, base).angle_change == 0
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3] += 1
    assert weight_change(model, base).angle_change > 1e-2
