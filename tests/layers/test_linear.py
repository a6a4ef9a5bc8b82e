"""What is special about linear layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.contract_cases import randomize, rotation_parameters
from tests.support.layer_models import linear


class Doubling(nn.Linear):
    """A subclass whose forward only it knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 2)


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_forward_of_its_own_is_called(side: str, bias: bool) -> None:
    model = linear(base=Doubling(12, 20, bias=bias), side=side, magnitude=True)
    x = torch.randn(3, 12)
    turned = model(x)
    layer = model.base_model.model.layer
    (weight,) = layer.rotated_matrices(["default"]).values()
    expected = torch.nn.functional.linear(2 * x, weight, layer.base_layer.bias)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-5)  # float32, 12 products and the bias twice


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_hooked_forward_is_called(side: str) -> None:
    base = nn.Linear(12, 20)
    original, calls = base.forward, []

    def hooked(x: Tensor) -> Tensor:
        calls.append(1)
        return original(x)

    base.forward = hooked  # type: ignore[method-assign]  # as accelerate's offloading does
    model, plain = linear(base=base, side=side), linear(side=side)
    plain.base_model.model.layer.base_layer.load_state_dict(
        {"weight": base.weight.detach(), "bias": base.bias.detach()}
    )
    x = torch.randn(3, 12)
    torch.testing.assert_close(model(x), plain(x), rtol=0, atol=1e-5)
    assert calls


def test_the_bias_is_neither_turned_nor_scaled() -> None:
    model = linear(side="out", magnitude=True)
    assert torch.equal(model(torch.zeros(2, 12))[0], model.base_model.model.layer.base_layer.bias)


@pytest.mark.parametrize("side", ["in", "out"])
def test_an_empty_batch(side: str) -> None:
    model = linear(side=side, magnitude=True)
    x = torch.zeros(0, 5, 12, requires_grad=True)
    y = model(x)
    assert y.shape == (0, 5, 20)
    y.sum().backward()
    assert x.grad is not None


def test_uses_of_one_layer_add_up_in_its_gradient() -> None:
    model = linear(base=nn.Linear(12, 12)).train()
    x = torch.randn(3, 12)
    model(model(x)).sum().backward()
    twice = [p.grad.clone() for p in rotation_parameters(model).values()]
    once = randomize(linear(base=model.base_model.model.layer.base_layer)).train()
    other = randomize(linear(base=model.base_model.model.layer.base_layer)).train()
    once(other(x)).sum().backward()
    pairs = zip(rotation_parameters(once).values(), rotation_parameters(other).values(), strict=True)
    for found, (first, second) in zip(twice, pairs, strict=True):
        torch.testing.assert_close(found, first.grad + second.grad, rtol=1e-5, atol=1e-5)
