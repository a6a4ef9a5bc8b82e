"""Unmerging gives every parameter back bit for bit, and several adapters act in their stated order."""

from __future__ import annotations

import pytest
import torch

from tests.support.contract_cases import (
    NAMES,
    Case,
    base_parameters,
    cases,
    rotation_parameters,
    same_bits,
    several,
    snapshot,
    switched_cases,
    transformed,
)
from tests.support.contract_reference import run


@pytest.mark.parametrize("case", switched_cases() + transformed(dtypes=(torch.bfloat16,)), ids=str)
def test_unmerge_gives_the_weights_back_bit_for_bit(case: Case) -> None:
    model = case.trained()
    before = snapshot(dict(model.named_parameters()))
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model.merge_adapter()
    changed = [n for n, p in base_parameters(model).items() if not torch.equal(p, before[n])]
    assert len(changed) == len({turn.parameter for turn in case.kind.turns})
    model.unmerge_adapter()
    same_bits(dict(model.named_parameters()), before)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@pytest.mark.parametrize("case", cases("exact") + transformed("linear_rank3", "conv2d", "embedding"), ids=str)
def test_several_adapters_act_in_the_order_of_their_names(case: Case) -> None:
    order = NAMES if case.side == "in" else NAMES[::-1]
    model, configs = several(case)
    model.base_model.set_adapter(list(order))
    inputs = case.inputs()
    leaves = {name: p.detach().double() for name, p in rotation_parameters(model).items()}
    expected = run(case, model, inputs, {name: configs[name] for name in order}, leaves)
    backwards = run(case, model, inputs, {name: configs[name] for name in order[::-1]}, leaves)
    before = snapshot(base_parameters(model))
    with torch.no_grad():
        turned = model(*inputs)
        case.close(turned, expected)
        # Two of the three turn the same side and do not commute, so the order can be seen.
        assert (expected - backwards).abs().max() > 1e-3 * expected.abs().max()
        model.merge_adapter()
        case.close(model(*inputs), expected)
        model.unmerge_adapter()
        same_bits(base_parameters(model), before)


@pytest.mark.filterwarnings("ignore:Already following adapters", "ignore:All adapters are already merged")  # PEFT's
@pytest.mark.parametrize("case", cases("exact") + cases("together", dtypes=(torch.bfloat16,)), ids=str)
def test_merging_one_after_another_equals_merging_together(case: Case) -> None:
    model, _ = several(case)
    before = snapshot(base_parameters(model))
    model.merge_adapter(["default", "second"])
    together = snapshot(base_parameters(model))
    model.unmerge_adapter()
    model.merge_adapter(["default"])
    model.merge_adapter(["second"])
    # bit for bit: adapters are always merged together from the originals and rounded once
    same_bits(base_parameters(model), together)
    model.merge_adapter(["default"])  # merged already
    same_bits(base_parameters(model), together)
    model.unmerge_adapter()
    same_bits(base_parameters(model), before)
