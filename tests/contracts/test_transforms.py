"""Derivatives of every order and by every way that torch has: those of the same model with its weights written out.

The reference is plain torch in float64, see ``reference.py``. The loss is a random projection of the output and of its
square: it depends on every rotation, also where a norm alone would not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from orthotune.errors import OrthotuneError
from tests.support.contract_cases import Case, cases, rotation_parameters, transformed
from tests.support.contract_reference import run

F64 = (torch.float64,)
EVERY = [
    case
    for case in cases("exact", "shared", "neumann", "magnitude", "coft", "together", dtypes=F64)
    # every option on one linear layer and one convolution; the plainest and the fullest for every kind
    if case.kind.name in ("linear_rank3", "conv2d")
    or (case.options == "exact" and case.side == "in")
    or (case.options == "together" and case.side == case.kind.sides[-1])
]
EVERY += transformed("linear_rank3", dtypes=F64)


@pytest.fixture(autouse=True)
def _differentiable_attention() -> Iterator[None]:
    """torch's fused attention has no second derivative and no forward one, adapted or not."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with sdpa_kernel(SDPBackend.MATH):
        yield
    torch.backends.mha.set_fastpath_enabled(fast)


Values = dict[str, Tensor]


def _values(model: nn.Module) -> Values:
    return {name: p.detach().clone() for name, p in rotation_parameters(model).items()}


def _project(output: Tensor) -> Tensor:
    # numbers without a pattern, and without a random operation, which vmap would refuse
    factor = (torch.arange(output.numel(), dtype=torch.float64).square() * 0.7 + 1).sin().view(output.shape)
    return (output * factor).sum() + 0.3 * (output.square() * factor.roll(1, -1)).sum()


def _loss(case: Case, model: nn.Module) -> Callable[[Values], Tensor]:
    inputs = case.inputs()
    return lambda values: _project(functional_call(model, values, inputs))


def _reference(case: Case, model: nn.Module) -> Callable[[Values], Tensor]:
    return lambda values: _project(run(case, model, case.inputs(), {"default": case.config}, values))


def _direction(values: Values) -> Values:
    generator = torch.Generator().manual_seed(9)
    return {name: torch.randn(v.shape, generator=generator, dtype=v.dtype) for name, v in values.items()}


def _close(found: Any, wanted: Any) -> None:
    """Float64 through at most a hundred additions, products and solves: far from 1e-8 of the largest number."""
    for name in wanted:
        limit = 1e-8 * max(wanted[name].abs().max().item(), 1e-3)
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-8, atol=limit, msg=lambda m, n=name: f"{n}: {m}")


def _gradient(loss: Callable[[Values], Tensor], values: Values, create_graph: bool = False) -> Values:
    leaves = {name: v.clone().requires_grad_() for name, v in values.items()}
    found = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=create_graph)
    return dict(zip(leaves, found, strict=True))


def _hessian_times(loss: Callable[[Values], Tensor], values: Values, direction: Values) -> Values:
    leaves = {name: v.clone().requires_grad_() for name, v in values.items()}
    gradient = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=True)
    along = sum((g * d).sum() for g, d in zip(gradient, direction.values(), strict=True))
    return dict(zip(leaves, torch.autograd.grad(along, list(leaves.values())), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_first_and_second_derivatives_by_the_parameters(case: Case) -> None:
    model = case.trained()
    values = _values(model)
    direction, loss = _direction(values), _loss(case, model)
    with torch.no_grad():
        before = model(*case.inputs())
    reference = _reference(case, case.trained())
    wanted = _gradient(reference, values)

    _close(_gradient(loss, values), wanted)
    gradient = torch.func.grad(loss)(values)
    _close(gradient, wanted)
    slope = sum((wanted[name] * d).sum() for name, d in direction.items())
    value, tangent = torch.func.jvp(loss, (values,), (direction,))
    _close({"value": value, "slope": tangent}, {"value": reference(values), "slope": slope})

    twice = _hessian_times(reference, values, direction)
    _close(_hessian_times(loss, values, direction), twice)
    _close(torch.func.jvp(torch.func.grad(loss), (values,), (direction,))[1], twice)
    if case.kind.name != "encoder_layer":  # torch's own LayerNorm is wrong here: a backward through its forward mode
        _close(torch.func.grad(lambda v: torch.func.jvp(loss, (v,), (direction,))[1])(values), twice)

    # the model's own parameters, once and twice, as a training step does it
    parameters = list(rotation_parameters(model).values())
    own = torch.autograd.grad(_project(model(*case.inputs())), parameters, create_graph=True)
    _close(dict(zip(values, own, strict=True)), wanted)
    along = sum((g * d).sum() for g, d in zip(own, direction.values(), strict=True))
    _close(dict(zip(values, torch.autograd.grad(along, parameters), strict=True)), twice)  # type: ignore[arg-type]
    with torch.no_grad():
        assert torch.equal(model(*case.inputs()), before)
    assert not any(p.grad is not None for p in parameters)


SOME = [case for case in EVERY if case.options in ("exact", "together")]


@pytest.mark.parametrize("case", SOME, ids=str)
def test_jacobians_forward_and_backward(case: Case) -> None:
    model = case.trained()
    values, inputs = _values(model), case.inputs()
    name = next(name for name in values if "oft_magnitude" not in name)

    def outputs(v: Tensor) -> Tensor:
        return functional_call(model, values | {name: v}, inputs).flatten()[:5]  # five are enough

    def reference(v: Tensor) -> Tensor:
        return run(case, model, inputs, {"default": case.config}, values | {name: v}).flatten()[:5]

    wanted = torch.autograd.functional.jacobian(reference, values[name])
    assert wanted.abs().max() > 1e-4 or "attention" in case.kind.name
    _close({"jacrev": torch.func.jacrev(outputs)(values[name])}, {"jacrev": wanted})
    _close({"jacfwd": torch.func.jacfwd(outputs)(values[name])}, {"jacfwd": wanted})


@pytest.mark.parametrize("case", [case for case in SOME if case.inputs()[0].is_floating_point()], ids=str)
def test_a_transform_of_the_input_leaves_nothing_behind(case: Case) -> None:
    untouched, model = case.trained(), case.trained()  # neither has computed a rotation
    for parameters in (True, False):
        model.requires_grad_(parameters)
        x, *others = case.inputs()
        gradient = torch.func.grad(lambda x, others=others: _project(model(x, *others)))(x)
        leaf = x.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(_project(untouched(leaf, *others)), leaf)
        _close({"gradient": gradient}, {"gradient": wanted})
        with torch.no_grad():
            assert torch.equal(model(x, *others), untouched(x, *others))


def _can_be_vmapped(case: Case) -> bool:
    """Kinds whose base takes samples one at a time: the batch is the first dimension of the only input."""
    return len(case.inputs()) == 1 and case.kind.name not in ("conv1d_same",)


@pytest.mark.parametrize("case", [case for case in SOME if _can_be_vmapped(case)], ids=str)
def test_gradients_of_each_sample_by_vmap(case: Case) -> None:
    model = case.trained()
    values, (x,) = _values(model), case.inputs()
    x = x[None] if case.kind.name == "linear_rank1" else x

    def loss(v: Values, one: Tensor) -> Tensor:
        return _project(functional_call(model, v, (one[None],)))

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
    for row in range(len(x)):
        wanted = _gradient(lambda v, row=row: loss(v, x[row]), values)  # type: ignore[misc]
        _close({name: g[row] for name, g in found.items()}, wanted)
    # several sets of parameters at once
    several = {name: torch.stack([v, 0.5 * v]) for name, v in values.items()}
    both = torch.func.vmap(lambda v: functional_call(model, v, (x,)))(several)
    for index, factor in enumerate((1.0, 0.5)):
        alone = functional_call(model, {name: factor * v for name, v in values.items()}, (x,))
        _close({"output": both[index]}, {"output": alone.detach()})


@pytest.mark.parametrize("case", [case for case in SOME if case.inputs()[0].is_floating_point()], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_a_penalty_on_the_gradient_of_the_input(case: Case, training: bool) -> None:
    if training and case.options == "together":
        return  # COFT moves the parameters to the edge of their ball, where there is no second derivative
    model = case.trained().train(training)

    def penalty(function: Callable[..., Tensor]) -> Tensor:
        x, *others = case.inputs()
        x = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(_project(function(x, *others)), x, create_graph=True)
        return gradient.square().sum() + gradient.sum()

    parameters = rotation_parameters(model)
    found = torch.autograd.grad(penalty(model), list(parameters.values()), allow_unused=True)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}

    def reference(*inputs: Tensor) -> Tensor:
        return run(case, model, inputs, {"default": case.config}, leaves)

    wanted = torch.autograd.grad(penalty(reference), list(leaves.values()), allow_unused=True)
    for name, one, other in zip(leaves, found, wanted, strict=True):
        nothing = torch.zeros(leaves[name].shape, dtype=torch.float64)
        _close({name: nothing if one is None else one}, {name: nothing if other is None else other})


STRENGTHS = [case for case in SOME if case.side == "in"] + cases("neumann", dtypes=F64)[:2]


@pytest.mark.parametrize("case", STRENGTHS, ids=str)
def test_at_a_strength_a_derivative_is_right_or_refused(case: Case) -> None:
    model = case.trained()
    model.base_model.set_scale("default", 0.6)
    values = _values(model)
    direction, loss = _direction(values), _loss(case, model)
    config = case.config | {"strength": 0.6}

    def reference(v: Values) -> Tensor:
        return _project(run(case, model, case.inputs(), {"default": config}, v))

    with torch.no_grad():
        before = model(*case.inputs())
    ways: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
        "backward": (lambda: _gradient(loss, values), lambda: _gradient(reference, values)),
        "grad": (lambda: torch.func.grad(loss)(values), lambda: _gradient(reference, values)),
        "jvp": (
            lambda: {"slope": torch.func.jvp(loss, (values,), (direction,))[1]},
            lambda: {"slope": sum((g * direction[n]).sum() for n, g in _gradient(reference, values).items())},
        ),
        "twice": (
            lambda: _hessian_times(loss, values, direction),
            lambda: _hessian_times(reference, values, direction),
        ),
    }
    refused = []
    for way, (found, wanted) in ways.items():
        try:
            result = found()
        except OrthotuneError:
            refused.append(way)
            continue
        _close(result, wanted())
    assert "backward" not in refused or model.peft_config["default"].use_cayley_neumann is not False
    with torch.no_grad():
        assert torch.equal(model(*case.inputs()), before)


@pytest.mark.parametrize("case", cases("exact", dtypes=F64), ids=str)
def test_the_reference_itself_is_the_derivative(case: Case) -> None:
    """Finite differences: a central one of 1e-5 is off by its square times the third derivative, and by rounding."""
    model = case.trained()
    values = _values(model)
    direction, loss = _direction(values), _loss(case, model)
    with torch.no_grad():
        ahead, behind = (loss({n: v + e * direction[n] for n, v in values.items()}) for e in (1e-5, -1e-5))
    slope = sum((g * direction[n]).sum() for n, g in _gradient(_reference(case, model), values).items())
    torch.testing.assert_close((ahead - behind) / 2e-5, slope, rtol=1e-5, atol=1e-5)
