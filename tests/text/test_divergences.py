"""Divergences against their definitions, and exactly nothing to learn where student and teacher agree."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthotune.text.divergences import DIVERGENCES, Divergence, divergence_of


def _by_definition(name: str, student: Tensor, teacher: Tensor) -> Tensor:
    p, q = student.softmax(-1), teacher.softmax(-1)
    mixture = (p + q) / 2

    def kl(one: Tensor, other: Tensor) -> Tensor:
        return (one * (one / other).log()).sum(-1)

    found = {"forward": kl(q, p), "reverse": kl(p, q), "jensen-shannon": (kl(p, mixture) + kl(q, mixture)) / 2}
    return found[name]


@pytest.mark.parametrize("name", DIVERGENCES)
def test_value_and_gradient_are_those_of_the_definition(name: Divergence) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7, dtype=torch.float64, requires_grad=True), torch.randn(5, 7).double()
    expected, found = _by_definition(name, student, teacher), divergence_of(name, student, teacher)
    # float64: the sums are those of the definition in another order.
    torch.testing.assert_close(found, expected, atol=1e-13, rtol=1e-12)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-13, rtol=1e-12)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_predictions_have_no_divergence_and_no_gradient(name: Divergence, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (6 * torch.randn(11, 501)).to(dtype)
    student = logits.clone().requires_grad_()
    found = divergence_of(name, student, logits)
    found.mean().backward()
    assert found.dtype == torch.float32 and student.grad is not None
    assert not found.any() and not student.grad.any()


@pytest.mark.parametrize("name", DIVERGENCES)
def test_distant_predictions_stay_finite(name: Divergence) -> None:
    student = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    found = divergence_of(name, student, torch.tensor([[-300.0, 300.0, 0.0]]))
    found.sum().backward()
    assert student.grad is not None and student.grad.isfinite().all() and found.isfinite().all()
    assert name != "jensen-shannon" or found.item() == pytest.approx(0.6931, abs=1e-4)  # log 2, its largest value
