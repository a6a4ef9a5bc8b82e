"""Rotations stay float32 in a model of any precision, and cost no float32 copy of the activations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orthotune.rotation.measure import orthogonality_error
from tests.support.contract_cases import Case, cases, rotation_parameters
from tests.support.contract_reference import run
from tests.support.layer_models import linear, rotations

LOW = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("case", cases("exact", "neumann", "together"), ids=str)
def test_autocast_does_not_lower_the_rotation(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    leaves = {n: p.detach().double() for n, p in rotation_parameters(model).items()}
    expected = run(case, model, inputs, {"default": case.config}, leaves)
    exact = [rotation() for rotation in rotations(model)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(*inputs)
        for rotation, R in zip(rotations(model), exact, strict=True):
            assert rotation().dtype == torch.float32
            assert torch.equal(rotation(), R)
    # the base's own products run in bfloat16: its roundings, not more
    error = (found.double() - expected).abs().max()
    assert error <= (32 if len(case.kind.turns) > 1 else 4) * torch.finfo(torch.bfloat16).eps * expected.abs().max()


@pytest.mark.parametrize("kind", ["conv2d", "attention", "experts"])
def test_autocast_does_not_reach_a_turned_weight(kind: str) -> None:
    case = next(c for c in cases("exact") if c.kind.name == kind and c.side == "in")
    model = case.trained()
    layer = model.base_model.model.layer
    plain = layer.rotated_matrices(["default"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        turned = layer.rotated_matrices(["default"])
        model.merge_adapter()
    assert all(W.dtype == torch.float32 and torch.equal(W, plain[name]) for name, W in turned.items())
    assert all(torch.equal(p, plain[name]) for name, p in layer.base_parameters().items())


@pytest.mark.parametrize("case", cases("exact", "together"), ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_cast_after_injection(case: Case, dtype: torch.dtype) -> None:
    model = case.trained()
    with torch.no_grad():
        model(*case.inputs())  # fills the caches
        model.to(dtype)
        cast = Case(case.kind, case.side, case.options, dtype)
        turned = model(*cast.inputs())
        assert turned.dtype == dtype
        for rotation in rotations(model):
            assert rotation().dtype == torch.promote_types(dtype, torch.float32)
            # from lowered numbers, but still a rotation
            assert orthogonality_error(rotation()).max() < 5e-6
        model.merge_adapter()
        cast.close(model(*cast.inputs()), turned)


@pytest.mark.parametrize("dtype", LOW)
def test_parameters_are_float32_on_a_low_precision_base(dtype: torch.dtype) -> None:
    model = linear(base=nn.Linear(12, 20).to(dtype), magnitude=True)
    assert {p.dtype for p in rotation_parameters(model).values()} == {torch.float32}
    small = 1e-4  # a step that bfloat16 and float16 numbers near 1 would swallow
    with torch.no_grad():
        model.base_model.model.layer.oft_magnitude["default"].weight.add_(small)
    assert (model.base_model.model.layer.oft_magnitude["default"].weight != 1).all()


def _saved(model: nn.Module, x: Tensor) -> list[Tensor]:
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x).float().sum().backward()
    return saved


@pytest.mark.parametrize("side", ["in", "out"])
@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_no_float32_copy_of_the_activations_is_kept(side: str, magnitude: bool, autocast: bool) -> None:
    width, rows = 64, 512
    base = nn.Linear(width, width) if autocast else nn.Linear(width, width).bfloat16()
    model = linear(base=base, oft_block_size=8, side=side, magnitude=magnitude).train()
    x = torch.randn(rows, width, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        layer = model.base_model.model.layer
        saved = _saved(layer, x)
    assert any(t.dtype == torch.bfloat16 and t.numel() >= x.numel() for t in saved)
    assert not [t.shape for t in saved if t.dtype == torch.float32 and t.numel() >= x.numel()]


def test_the_input_is_kept_once_for_projections_that_share_it() -> None:
    first, second = (linear(base=nn.Linear(64, 64).bfloat16(), oft_block_size=8).train() for _ in range(2))
    x = torch.randn(512, 64, dtype=torch.bfloat16, requires_grad=True)
    places = {t.data_ptr() for m in (first, second) for t in _saved(m, x) if t.shape[-1] == 64 and t.shape[0] == 512}
    assert places == {x.data_ptr()}
