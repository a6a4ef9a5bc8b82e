"""No graph break inside a rotated layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from contracts.cases import rotation_parameters
from layers.models import linear

FIELDS: dict[str, dict[str, Any]] = {
    "exact": {},
    "shared": {"block_share": True},
    "neumann": {"use_cayley_neumann": True},
    "coft": {"coft": True, "eps": 0.3},
    "magnitude": {"magnitude": True},
    "out": {"side": "out"},
}


@pytest.fixture(autouse=True)
def _forget() -> Any:
    """Each test starts with an empty compiler."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("fields", FIELDS)
@pytest.mark.parametrize("mode", ["training", "evaluation", "inference"])
def test_a_rotated_linear_is_one_graph(mode: str, fields: str) -> None:
    model, plain = linear(**FIELDS[fields]), linear(**FIELDS[fields])
    for one in (model, plain):
        one.train(mode == "training")
    x = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.set_grad_enabled(mode != "inference"):
        found, expected = compiled(x), plain(x)
    torch.testing.assert_close(
        found, expected, rtol=0, atol=1e-5
    )  # float32; the compiled path may sum in another order
    if mode != "inference":
        found.square().sum().backward()
        expected.square().sum().backward()
        pairs = zip(rotation_parameters(model).values(), rotation_parameters(plain).values(), strict=True)
        for parameter, other in pairs:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-5)
            assert parameter.grad.any()


def test_dropout_is_one_graph_too() -> None:
    model = linear(module_dropout=0.5).train()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(3, 12)
    assert len({compiled(x).sum().item() for _ in range(12)}) > 1


def test_a_changed_parameter_is_seen_by_a_compiled_model() -> None:
    model = linear()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(3, 12)
    with torch.no_grad():
        before = compiled(x)
        for parameter in rotation_parameters(model).values():
            parameter.mul_(2)
        assert (compiled(x) - before).abs().max() > 1e-3
        torch.testing.assert_close(compiled(x), model(x), rtol=0, atol=1e-5)


def test_bfloat16_is_one_graph_too() -> None:
    model = linear(base=nn.Linear(12, 20).bfloat16()).train()
    x = torch.randn(3, 12, dtype=torch.bfloat16, requires_grad=True)
    found = torch.compile(model, fullgraph=True, backend="eager")(x)
    found.sum().backward()
    expected = model(x)
    # one rounding of bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=2 * 2**-8 * expected.abs().max().item())
