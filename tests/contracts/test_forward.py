"""A fresh adapter changes nothing, a merged one computes the same, a disabled one is not there."""

from __future__ import annotations

import pytest
import torch

from tests.support.contract_cases import (
    Case,
    base_parameters,
    cases,
    every_case,
    same_bits,
    snapshot,
    switched_cases,
    transformed,
)


@pytest.mark.parametrize("case", switched_cases(), ids=str)
def test_a_fresh_adapter_changes_nothing(case: Case) -> None:
    base, model, inputs = case.base(), case.fresh(), case.inputs()
    # x I and I W are exact in every dtype; what may round differently is a bias added apart from the product, and a
    # convolution over a weight in another memory format.
    case.close(model(*inputs), base(*inputs), roundings=case.bias_roundings())
    before = snapshot(base_parameters(model))
    model.merge_adapter()
    same_bits(base_parameters(model), before)


@pytest.mark.parametrize("case", transformed(), ids=str)
def test_a_fresh_transform_changes_nothing_but_the_last_digits(case: Case) -> None:
    base, model, inputs = case.base(), case.fresh(), case.inputs()
    case.close(model(*inputs), base(*inputs), roundings=8)
    before = snapshot(base_parameters(model))
    model.merge_adapter()
    for name, parameter in base_parameters(model).items():
        case.close(parameter, before[name], roundings=4)  # pairs of equal reflections cancel to rounding


@pytest.mark.parametrize("case", every_case() + transformed(), ids=str)
def test_forward_equals_merged_forward(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    with torch.no_grad():
        plain, turned = case.base()(*inputs), model(*inputs)
        model.merge_adapter()
        case.close(turned, model(*inputs))
        model.unmerge_adapter()
        assert torch.equal(model(*inputs), turned)
        merged = model.merge_and_unload()
        assert type(merged.layer) is type(case.base().layer)
        case.close(turned, merged(*inputs))
    # The comparison means something only if the adapter moves the output far more than rounding does.
    assert (turned - plain).abs().max() > 0.1 * plain.abs().max()


@pytest.mark.parametrize("case", cases("exact", "together") + transformed(), ids=str)
def test_forward_in_training_equals_forward_in_evaluation(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    turned = model(*inputs)
    # The kernels differ (attention and encoder layers have a fast path in evaluation), the numbers may not.
    case.close(model.train()(*inputs), turned)


@pytest.mark.parametrize("case", switched_cases() + transformed(dtypes=(torch.bfloat16,)), ids=str)
def test_a_disabled_adapter_is_the_base(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    with torch.no_grad():
        plain, turned = case.base()(*inputs), model(*inputs)
        with model.disable_adapter():
            assert torch.equal(model(*inputs), plain)
        assert torch.equal(model(*inputs), turned)
        model.merge_adapter()
        with model.disable_adapter():
            assert torch.equal(model(*inputs), plain)
        case.close(model(*inputs), turned)
        assert torch.equal(model.unload()(*inputs), plain)
