"""Transforms besides blocks: operators of one form come from one batch, and layers of one input share it."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune import OFTConfig, get_peft_model
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.plan import explain
from orthotune.rotation.operator import mapped
from tests.support.contract_cases import TRANSFORMS, randomize

#: a basis is not copied into a batch
BATCHED = [name for name in TRANSFORMS if name != "psoft"]
every = pytest.mark.parametrize("name", BATCHED)
#: blocks along the diagonal, at these sizes: layers of one input multiply with them in one product
JOINED = ("butterfly", "angles", "road", "givens", "ether")


class Attention(nn.Module):
    """Three projections of one input, of two widths, and one of another input."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.o_proj = nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(torch.tanh(self.q_proj(x) + torch.cat([self.k_proj(x), self.v_proj(x)], -1)))


def _model(name: str, dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return randomize(get_peft_model(Attention().to(dtype), OFTConfig(target_modules=targets, **TRANSFORMS[name])))


def _x(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def _rotations(model: nn.Module) -> list[FamilyRotation]:
    return [module for module in model.modules() if isinstance(module, FamilyRotation)]


def _alone(model: Any) -> Any:
    for rotation in _rotations(model):
        rotation.group = None
    return model


def _parts(operator: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(operator, lambda part: found.append(part) or part)
    return found


@every
def test_one_batch_for_all_layers_of_a_size(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = _model(name), []
    kind = _rotations(model)[0].kind
    usual = kind.operator_of.__func__

    def counted(cls: Any, spec: Any, v: Tensor, basis: Any = None, plain: bool = False) -> Any:
        batches.append(v.shape[0] if v.dim() == 3 else 1)
        return usual(cls, spec, v, basis, plain)

    monkeypatch.setattr(kind, "operator_of", classmethod(counted))
    model(_x()).sum().backward()
    assert batches == [4, 4]  # forward, and once more in the backward
    model(_x()).sum().backward()
    with torch.no_grad():
        model(_x())
    assert batches == [4, 4, 4]  # nothing has changed: only the second backward computes


@every
def test_the_same_bits_whichever_layer_asks_first_and_with_a_gradient_or_without(name: str) -> None:
    model, other = _model(name, torch.float32), _model(name, torch.float32)
    first = [_parts(rotation()) for rotation in _rotations(model)]
    with torch.no_grad():
        last = [[part.clone() for part in _parts(one._made())] for one in reversed(_rotations(other))]
    for own, wanted in zip(first, reversed(last), strict=True):
        assert all(torch.equal(a.detach(), b) for a, b in zip(own, wanted, strict=True))


@every
def test_gradients_are_those_of_each_layer_alone(name: str) -> None:
    found = []
    for model in (_model(name), _alone(_model(name))):
        x = _x().requires_grad_()
        parameters = [p for p in model.parameters() if p.requires_grad]
        y = model(x).square().sum()
        first = torch.autograd.grad(y, [x, *parameters], retain_graph=True)
        again = torch.autograd.grad(y, [x, *parameters], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in again), [x, *parameters])
        found.append([*first, *again, *second])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@every
def test_a_write_between_two_steps_is_seen_and_gradients_add_up(name: str) -> None:
    model, alone = _model(name), _alone(_model(name))
    for twin in (model, alone):
        for step in range(3):
            twin(_x()).square().sum().backward()
            with torch.no_grad():
                for p in twin.parameters():
                    if p.requires_grad and step == 1:
                        p.data.mul_(1.1).add_(0.01)
    for a, b in zip(model.parameters(), alone.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-11)


def test_a_layer_that_was_passed_by_has_no_gradient() -> None:
    model = _model("reflections")
    model.base_model.model.q_proj(_x()).sum().backward()
    given = {name: p.grad is not None for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, has in given.items() if has] == ["base_model.model.q_proj.oft_R.default.weight"]


@every
def test_copies_compute_for_themselves_and_nothing_keeps_a_model_alive(name: str) -> None:
    model = _model(name)
    with torch.no_grad():
        model(_x())
    copied = copy.deepcopy(model)
    y = model(_x())
    assert all(rotation.group is None for rotation in _rotations(copied))
    torch.testing.assert_close(copied(_x()), y, rtol=0, atol=1e-12)
    gone = weakref.ref(_rotations(model)[0])
    del model
    gc.collect()
    y.sum().backward()  # the graph alone needs the numbers, and not the module
    del y
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("name", JOINED)
def test_layers_of_one_input_share_it(name: str) -> None:
    model = _model(name)
    with torch.no_grad():
        wanted = copy.deepcopy(model).merge_and_unload()(_x())
        for rows in (_x(), _x()[:1], _x()[:1], _x()[:1]):  # a plan, and calls like the last one
            torch.testing.assert_close(model(rows), wanted[: len(rows)], rtol=0, atol=1e-12)
    assert "shares its input with 2 others" in explain(model.base_model.model.q_proj)
    torch.testing.assert_close(model(_x()), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", JOINED)
def test_a_write_between_the_layers_of_one_input_is_seen(name: str) -> None:
    model = _model(name)
    inner = model.base_model.model
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            x = _x()
            inner.q_proj(x)
            with torch.no_grad():
                inner.k_proj.oft_R["default"].weight.data.mul_(1.3).add_(0.05)
            found = inner.k_proj(x)
            wanted = torch.nn.functional.linear(x, inner.k_proj.weight, inner.k_proj.get_base_layer().bias)
            torch.testing.assert_close(found.detach(), wanted.detach(), rtol=0, atol=1e-12)
