"""A diagnosis says what was done to a layer, and warns of what was done wrong."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import orthotune
from orthotune.errors import AdapterFileError, ConfigError
from orthotune.formats import read_adapter
from orthotune.operations.diagnosis.comparison import compare_adapters
from orthotune.operations.diagnosis.diagnose import diagnose, diagnose_state
from tests.support.layer_models import everything, linear, tokens


def _angle(model, q: float) -> None:
    """Every plane of blocks of 2 turned by 2 atan(q)."""
    for name, parameter in model.named_parameters():
        if "oft_" in name:
            parameter.data.fill_(q)


def test_angles_distance_and_weights_are_those_of_a_known_rotation() -> None:
    model = linear(oft_block_size=2, use_cayley_neumann=False, trained=False)
    _angle(model, math.tan(0.2))
    found = orthotune.diagnose(model)
    (row,) = found.rotations
    assert row.layer == "layer" and row.blocks == 6 and sum(row.angle_counts) == 6
    # float32 rotations: a rounding of 1e-7 at an angle of 0.4
    assert row.angle_max == pytest.approx(0.4, abs=1e-6) and row.angle_mean == pytest.approx(0.4, abs=1e-6)
    assert row.angle_counts[int(0.4 / math.pi * 24)] == 6
    assert row.distance == pytest.approx(2 * math.sqrt(2) * math.sin(0.2), abs=1e-6)
    weight = found.weights["layer", ""]
    assert weight.spectrum_change < 1e-6 and weight.energy_after == pytest.approx(weight.energy_before, rel=1e-6)
    assert 0.1 < weight.weight_change < 0.5
    assert found.advice == []


def test_every_kind_of_layer_and_side_is_measured_and_nothing_changes() -> None:
    for side in ("in", "out"):
        targets = ["conv", "mix", "attention", "head"] + (["embed"] if side == "in" else [])
        model = everything(side=side, target_modules=targets, use_cayley_neumann=False)
        before = model(tokens())
        found = diagnose(model)
        assert len(found.rotations) == len(targets) + 3 == len(found.weights)
        assert all(weight.spectrum_change < 1e-5 for weight in found.weights.values())
        assert torch.equal(model(tokens()), before)


def test_magnitudes_show_in_the_spectrum() -> None:
    assert diagnose(linear(magnitude=True)).weights["layer", ""].spectrum_change > 0.01


def test_gradient_norms_are_told_after_a_backward() -> None:
    model = linear()
    model(torch.ones(2, 12)).square().sum().backward()
    row = diagnose(model, weights=False).record()["layers"][0]
    parameter = model.base_model.model.layer.oft_R["default"].weight
    assert row["gradient_norm"] == pytest.approx(parameter.grad.norm().item(), rel=1e-6)
    assert "energy_before" not in row


@pytest.mark.parametrize(
    ("fields", "q", "words", "remedy"),
    [
        ({"use_cayley_neumann": True}, 0.3, "near divergence", "use_cayley_neumann=False"),
        ({"use_cayley_neumann": False}, 0.9, "too high for this block size", "scaled=True"),
        ({}, 0.0, "does nothing", "higher learning rate"),
        ({"coft": True, "eps": 0.1}, 0.5, "at the COFT radius", "Raise eps"),
        ({}, math.nan, "NaN", "earlier checkpoint"),
    ],
)
def test_a_warning_names_the_remedy(fields, q, words, remedy) -> None:
    model = linear(trained=False, **{"use_cayley_neumann": False} | fields)
    _angle(model, q)
    if math.isnan(q):
        with torch.no_grad():
            facts = diagnose_state_of_nan()
        assert words in facts[0].warning
        return
    (advice,) = diagnose(model).advice
    assert words in advice.warning and remedy in advice.remedy and "layer" in str(advice)


def diagnose_state_of_nan():
    from dataclasses import replace

    from orthotune.operations.diagnosis.advice import advise

    row = diagnose(linear(), weights=False).rotations[0]
    return advise([replace(row, orthogonality_error=math.nan)])


def test_dead_blocks_and_layers_without_a_gradient_are_found() -> None:
    model = everything(use_cayley_neumann=False)
    layer = model.base_model.model.mix
    layer.oft_R["default"].weight.data.zero_()
    model(tokens()).sum().backward()
    layer.oft_R["default"].weight.grad = None
    found = {one.warning: one.layers for one in diagnose(model, weights=False).advice}
    assert found["More than half of the blocks have not moved"] == ("mix",)
    assert found["No gradient reaches a layer"] == ("mix",)


def test_a_file_says_the_same_as_the_model(tmp_path) -> None:
    model = linear(use_cayley_neumann=False, scaled=True)
    model.save_pretrained(tmp_path)
    (of_file,), (of_model,) = diagnose_state(read_adapter(tmp_path)).rotations, diagnose(model).rotations
    assert of_file.angle_mean == pytest.approx(of_model.angle_mean, rel=1e-6)
    assert of_file.skew_norm == pytest.approx(of_model.skew_norm, rel=1e-6)


def test_two_adapters_are_compared_by_the_angle_between_them(tmp_path) -> None:
    states = []
    for number, (size, q) in enumerate([(2, math.tan(0.2)), (2, math.tan(0.3)), (4, 0.0), (3, 0.0)]):
        model = linear(oft_block_size=size, use_cayley_neumann=False, trained=False)
        _angle(model, q)
        model.save_pretrained(tmp_path / str(number))
        states.append(read_adapter(tmp_path / str(number)))
    (row,), alone = compare_adapters(states[0], states[1])
    assert (row.angle_max, alone) == (pytest.approx(0.2, abs=1e-6), []) and row.cosine == pytest.approx(1)
    (row,), _ = compare_adapters(states[0], states[2])
    assert row.angle_mean == pytest.approx(0.4, abs=1e-6) and row.cosine is None
    with pytest.raises(AdapterFileError, match="blocks of 4 and of 3"):
        compare_adapters(states[2], states[3])


def test_a_model_without_the_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match="adapters default"):
        diagnose(linear(), "other")
    with pytest.raises(ConfigError, match="without OFT adapters"):
        diagnose(nn.Linear(2, 2))


def test_histograms_reach_from_nothing_to_the_largest_angle_of_all_layers() -> None:
    model = everything(use_cayley_neumann=False)
    found = diagnose(model, weights=False)
    record = found.record()
    assert record["angle_top"] == max(row.angle_max for row in found.rotations) < math.pi
    for row, facts in zip(record["layers"], found.rotations, strict=True):
        assert sum(row["angle_histogram"]) == sum(facts.angle_counts) == facts.angles.numel()
        last = max(i for i, count in enumerate(row["angle_histogram"]) if count)
        assert last == min(int(facts.angle_max / record["angle_top"] * 24), 23)
        assert "angles" not in row
    assert any(row["angle_histogram"][-1] for row in record["layers"])
