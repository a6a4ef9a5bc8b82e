"""Every transform on every kind of layer and side: what the layer computes, its merged weight, and its way back."""

from __future__ import annotations

import pytest
import torch

from tests.support.contract_cases import Case, base_parameters, same_bits, snapshot, within_rounding
from tests.support.transform_table import pairs


@pytest.mark.parametrize("case", pairs(), ids=str)
def test_a_layer_is_its_merged_weight_and_comes_back(case: Case) -> None:
    model, inputs = case.trained().eval(), case.inputs()
    before = snapshot(base_parameters(model))
    with torch.no_grad():
        plain, found = case.base()(*inputs), model(*inputs)
        assert (found - plain).abs().max() > 1e-3
        model.merge_adapter()
        # attention and encoder layers chain several products, whose weights are rounded once more by the merge
        within_rounding(model(*inputs), found, case.dtype, 32 * (4 if len(case.kind.turns) > 1 else 1))
        model.unmerge_adapter()
        same_bits(base_parameters(model), before)
