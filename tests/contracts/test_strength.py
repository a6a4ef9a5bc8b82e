"""An adapter at a strength: the same part of the rotation in evaluation, training and merging."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel

from orthotune.errors import ConfigError
from orthotune.layers.base import OFTLayer
from tests.support.contract_cases import (
    Case,
    base_parameters,
    cases,
    rotation_parameters,
    same_bits,
    snapshot,
    transformed,
)
from tests.support.contract_reference import run


def at(model: PeftModel, t: float, kind: str = "geodesic") -> PeftModel:
    model.base_model.set_scale("default", t, kind)
    return model


def expected(case: Case, model: PeftModel, t: float, **more: Any) -> torch.Tensor:
    leaves = {name: p.detach().double() for name, p in rotation_parameters(model).items()}
    return run(case, model, case.inputs(), {"default": case.config | {"strength": t} | more}, leaves)


# one block for every place is part of "together"
EVERY = cases("exact", "neumann", "together") + cases("together", dtypes=(torch.bfloat16, torch.float64))
# every power is one of a matrix that the reference takes apart into its eigenvalues
EVERY += [
    case
    for case in transformed("linear_rank3", "conv2d", dtypes=(torch.float64,))
    if case.options in ("reflections", "angles")
]
LINEAR = cases("neumann", "together") + transformed("linear_rank3")


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_every_place_sees_the_strength(case: Case) -> None:
    model, inputs, before = case.trained(), case.inputs(), case.base()
    weights = snapshot(base_parameters(model))
    with torch.no_grad():
        plain, whole = before(*inputs), model(*inputs)
        for t in (0.5, -0.7):
            wanted = expected(case, model, t)
            turned = at(model, t)(*inputs)
            case.close(turned, wanted)
            case.close(model.train()(*inputs), wanted)
            model.eval().merge_adapter()
            case.close(model(*inputs), wanted)
            model.unmerge_adapter()
            same_bits(base_parameters(model), weights)
            assert torch.equal(model(*inputs), turned)
        # nothing at 0, the adapter at 1, as if nothing had been
        case.close(at(model, 0)(*inputs), plain, roundings=case.bias_roundings())
        assert torch.equal(at(model, 1)(*inputs), whole)
        merged = at(model, 0.5).merge_and_unload()
        case.close(merged(*inputs), turned := expected(case, at(case.trained(), 0.5), 0.5))
    assert (whole.double() - turned).abs().max() > 0.01 * turned.abs().max()


@pytest.mark.parametrize("case", LINEAR, ids=str)
@pytest.mark.parametrize("kind", ["linear", "rotation"])
def test_linear_blends(case: Case, kind: str) -> None:
    model, inputs = case.trained(), case.inputs()
    if kind == "linear" and "magnitude" in case.config:
        with pytest.raises(ConfigError, match="a magnitude beside the rotation"):
            at(model, 0.4, kind)
        assert torch.equal(model(*inputs), case.trained()(*inputs))
        return
    weights = {turn.parameter: dict(case.base().named_parameters())[turn.parameter] for turn in case.kind.turns}
    with torch.no_grad():
        case.close(at(model, 0.4, kind)(*inputs), expected(case, model, 0.4, kind=kind))
        whole, part = (dict(at(m, t, kind).merge_and_unload().named_parameters()) for m, t in _pair(case))
    for name, W in weights.items() if kind == "linear" else ():
        torch.testing.assert_close(part[name], torch.lerp(W, whole[name], 0.4), atol=1e-6, rtol=1e-5)


def _pair(case: Case) -> tuple[tuple[PeftModel, float], tuple[PeftModel, float]]:
    return (case.trained(), 1.0), (case.trained(), 0.4)


@pytest.mark.parametrize("case", cases("exact", "together"), ids=str)
def test_training_at_a_strength_has_the_right_gradient(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()  # in training COFT's parameters would come to the edge of their ball
    output = at(model, 0.6)(*inputs)
    leaves = {name: p.detach().double().requires_grad_() for name, p in rotation_parameters(model).items()}
    reference = run(case, model, inputs, {"default": case.config | {"strength": 0.6}}, leaves)
    weights = torch.randn(reference.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (reference * weights).sum().backward()
    (output * weights.float()).sum().backward()
    for name, parameter in rotation_parameters(model).items():
        found, wanted = parameter.grad, leaves[name].grad
        assert found is not None and wanted is not None
        # float32 outputs and their products, against float64 throughout
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=2e-5 * wanted.abs().max().item(), msg=name)


@pytest.mark.parametrize("case", cases("exact", "together"), ids=str)
def test_a_step_at_a_strength_is_seen(case: Case) -> None:
    model, inputs = at(case.trained(), 0.5).train(), case.inputs()
    optimizer = torch.optim.SGD(rotation_parameters(model).values(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        model(*inputs).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            case.close(model(*inputs), expected(case, model, 0.5))


@pytest.mark.parametrize("case", cases("exact"), ids=str)
def test_scaling_and_back(case: Case) -> None:
    model, inputs = at(case.trained(), 0.7), case.inputs()
    layers = [module for module in model.modules() if isinstance(module, OFTLayer)]
    with torch.no_grad():
        before = model(*inputs)
        for layer in layers:
            layer.scale_layer(0.3)
        case.close(model(*inputs), expected(case, model, 0.7 * 0.3))
        for layer in layers:
            layer.unscale_layer(0.3)
        assert torch.equal(model(*inputs), before)
        assert all(layer.strength("default").t == 0.7 for layer in layers)


def test_no_gradient_of_a_series_is_made_up() -> None:
    case = next(case for case in cases("neumann") if case.kind.name == "linear_rank2")
    model = at(case.trained(), 0.5).train()
    with pytest.raises(ConfigError, match="training a Neumann series at strength 0.5"):
        model(*case.inputs())
    at(model, 0.5, "linear")(*case.inputs()).sum().backward()
