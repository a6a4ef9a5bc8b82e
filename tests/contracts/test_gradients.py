"""Every parameter of an adapter learns, no input is written, and the closed-form backward is the derivative."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from orthotune.kernels.from_parameters import rotation_of
from orthotune.kernels.rotate import rotate, rotate_rows, rotate_stack
from orthotune.rotation.cayley import cayley
from orthotune.rotation.coft import project
from orthotune.rotation.neumann import neumann
from orthotune.rotation.packing import pack, unpack
from orthotune.rotation.spec import RotationSpec
from tests.support.contract_cases import Case, base_parameters, cases, rotation_parameters, snapshot, transformed


def _loss(case: Case, output: Tensor) -> Tensor:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(5))
    return (output * weights.to(case.dtype)).sum()


@pytest.mark.parametrize("case", cases("exact", "neumann", "coft", "together") + transformed(), ids=str)
@pytest.mark.parametrize("state", ["fresh", "trained"])
def test_every_stored_block_gets_a_gradient(case: Case, state: str) -> None:
    model = getattr(case, state)().train()
    _loss(case, model(*case.inputs())).backward()
    for name, parameter in rotation_parameters(model).items():
        assert parameter.grad is not None, name
        # by stored block, and by neuron for a magnitude
        assert (parameter.grad.flatten(1) if parameter.dim() > 1 else parameter.grad[:, None]).any(-1).all(), name
    assert all(p.grad is None for p in base_parameters(model).values())


@pytest.mark.parametrize("case", cases("exact", "together") + transformed("linear_rank3", "conv2d"), ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_no_input_is_written_in_place(case: Case, training: bool) -> None:
    model = case.trained().train(training)
    inputs = [x.requires_grad_() if x.is_floating_point() else x for x in case.inputs()]
    before = [x.detach().clone() for x in inputs]
    weights = snapshot(base_parameters(model))
    watched = [*inputs, *base_parameters(model).values()]
    versions = [t._version for t in watched]
    output = model(*inputs)
    upstream = torch.ones_like(output)
    output.backward(upstream)
    with torch.no_grad():
        model(*inputs)
    assert [t._version for t in watched] == versions
    assert all(torch.equal(x, old) for x, old in zip(inputs, before, strict=True))
    assert all(torch.equal(p, weights[name]) for name, p in base_parameters(model).items())
    assert (upstream == 1).all()


def _noise(*shape: int) -> Tensor:
    return 0.5 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(11))


FUNCTIONS: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "unpack": (lambda v: unpack(v, 4), (_noise(3, 6),)),
    "pack": (pack, (_noise(3, 4, 4),)),
    "cayley": (cayley, (_noise(2, 4, 4) - _noise(2, 4, 4).mT,)),
    "cayley_of_packed": (lambda v: cayley(unpack(v, 3)), (_noise(2, 3),)),
    # at this size a Newton step follows the inverse; the backward must still be the derivative of the whole
    "cayley_polished": (lambda v: cayley(unpack(v, 33))[:, ::8, ::8], (0.2 * _noise(1, 33 * 16),)),
    "cayley_small": (lambda v: cayley(unpack(v, 4)), (0.01 * _noise(2, 6),)),
    "map": (partial(rotation_of, RotationSpec(block_size=4)), (_noise(3, 6),)),
    "map_small": (partial(rotation_of, RotationSpec(block_size=8)), (0.01 * _noise(3, 28),)),
    "map_coft_scaled": (partial(rotation_of, RotationSpec(block_size=4, scaled=True, eps=0.3)), (_noise(3, 6),)),
    "map_neumann": (partial(rotation_of, RotationSpec(block_size=4, map="neumann_legacy")), (_noise(3, 6),)),
    "neumann": (neumann, (_noise(2, 4, 4),)),
    "neumann_legacy": (lambda Q: neumann(Q, 6, legacy=True), (_noise(2, 4, 4),)),
    "project_outside": (lambda v: project(v, 0.1), (_noise(3, 6),)),
    "project_inside": (lambda v: project(v, 100.0), (_noise(3, 6),)),
    "rotate": (rotate, (_noise(5, 12), _noise(3, 4, 4))),
    "rotate_shared": (rotate, (_noise(2, 3, 12), _noise(1, 4, 4))),
    "rotate_stack": (rotate_stack, (_noise(2, 5, 12), _noise(2, 3, 4, 4))),
    "rotate_rows": (rotate_rows, (_noise(12, 5), _noise(3, 4, 4))),
    "rotate_rows_shared": (rotate_rows, (_noise(2, 12, 5), _noise(2, 1, 4, 4))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradcheck(name: str) -> None:
    function, arguments = FUNCTIONS[name]
    # float64 and torch's own tolerances: 1e-6 steps, 1e-5 absolute
    assert torch.autograd.gradcheck(function, tuple(a.clone().requires_grad_() for a in arguments), fast_mode=True)
