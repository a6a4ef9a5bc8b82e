"""Values and gradients equal those of the dense float64 reference."""

from __future__ import annotations

import pytest
import torch

from tests.support.contract_cases import Case, every_case, rotation_parameters, transformed
from tests.support.contract_reference import run


@pytest.mark.parametrize("case", every_case() + transformed(), ids=str)
def test_values_and_gradients_equal_the_dense_reference(case: Case) -> None:
    model = case.trained()
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case.inputs()]
    output = model(*inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    (output * weights.to(case.dtype)).sum().backward()

    leaves = {n: p.detach().double().requires_grad_() for n, p in rotation_parameters(model).items()}
    wide = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs]
    expected = run(case, model, tuple(wide), {"default": case.config}, leaves)
    (expected * weights).sum().backward()

    case.close(output, expected.detach())
    # A gradient passes the rotation, the product and the bias once more on its way back, and sums over the batch.
    for x, reference in zip(inputs, wide, strict=True):
        if x.is_floating_point():
            case.close(x.grad, reference.grad, roundings=16)
    for name, parameter in rotation_parameters(model).items():
        case.close(parameter.grad, leaves[name].grad, roundings=32)
