"""Exact maps give rotations, and rotations keep what the pretrained neurons have."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor

from orthotune.kernels.from_parameters import rotation_of
from orthotune.rotation.cayley import cayley
from orthotune.rotation.energy import hyperspherical_energy
from orthotune.rotation.measure import orthogonality_error
from orthotune.rotation.packing import pack
from orthotune.rotation.spec import RotationSpec
from tests.support.contract_cases import Case, cases
from tests.support.contract_layers import Turn
from tests.support.contract_reference import wrapper

SIZES = (2, 3, 8, 16, 17, 31, 32, 64, 128, 256)


def _skew(block_size: int, norm: float, count: int) -> Tensor:
    """Random blocks of spectral norm ``norm``, and as many with half of their planes at it: those invert worst."""
    generator = torch.Generator().manual_seed(block_size)
    Q = torch.randn(count, block_size, block_size, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(Q).Q[..., : max(block_size // 4, 1) * 2]
    half = norm * (basis[..., ::2] @ basis[..., 1::2].mT)
    Q = Q - Q.mT
    Q = Q * (norm / torch.linalg.matrix_norm(Q, ord=2))[:, None, None]
    return torch.cat([Q, half - half.mT]).float()


@pytest.mark.parametrize("block_size", SIZES)
@pytest.mark.parametrize("norm", [0.01, 0.1, 0.3, 0.7, 1.0, 2.0, 4.0])
def test_exact_maps_are_orthogonal(block_size: int, norm: float) -> None:
    # 5e-6 is the promise for every size. Rounding the entries of R alone, each 1 / sqrt(b) large, gives about
    # eps sqrt(b) / 4, 5e-7 for b = 256; the rest is left for the inverse.
    Q = _skew(block_size, norm, count=200 if block_size < 64 else 4)
    assert torch.linalg.matrix_norm(Q, ord=2).amax() == pytest.approx(norm, rel=1e-5)
    for R in (cayley(Q), rotation_of(RotationSpec(block_size=block_size), pack(Q))):
        assert R.dtype == torch.float32
        assert orthogonality_error(R).max() <= 5e-6


def test_the_measure_sees_a_series_that_is_not_orthogonal() -> None:
    R = rotation_of(RotationSpec(block_size=32, map="neumann"), pack(_skew(32, 0.5, 4)))
    assert orthogonality_error(R).min() > 1e-2


def _matrices(case: Case, model: torch.nn.Module, turn: Turn) -> list[Tensor]:
    """The weight of ``turn`` as matrices with one neuron (or token) in each row, from the model as it is now."""
    layer = wrapper(model, turn).get_base_layer()  # type: ignore[operator]
    parameter = layer.get_parameter(turn.parameter.removeprefix(turn.module + "."))
    parameter = parameter[slice(*turn.rows)] if turn.rows else parameter
    if turn.stored in ("in_out", "conv_transposed"):
        parameter = parameter.mT if turn.stored == "in_out" else parameter.transpose(0, 1)
    return list(parameter) if parameter.dim() == 3 and "conv" not in turn.stored else [parameter.flatten(1)]


ROTATIONS = ("exact", "shared", "scaled", "coft")


@pytest.mark.parametrize("case", cases(*ROTATIONS), ids=str)
def test_a_rotation_keeps_the_hyperspherical_energy(case: Case) -> None:
    model = case.trained()
    before = [_matrices(case, model, turn) for turn in case.kind.turns]
    model.merge_adapter()
    after = [_matrices(case, model, turn) for turn in case.kind.turns]
    for W, turned in zip(chain(*before), chain(*after), strict=True):
        assert not torch.allclose(W, turned, atol=1e-2)
        # Turned inputs: the angles between the neurons stay. Turned outputs mix the neurons; what stays are the angles
        # between the columns, one for each input.
        rows = (W, turned) if case.side == "in" else (W.mT, turned.mT)
        for s in (0, 1, 2):
            energy, expected = hyperspherical_energy(rows[1], s), hyperspherical_energy(rows[0], s)
            assert energy == pytest.approx(expected, rel=1e-5, abs=1e-5)
        # Either side keeps the singular values; float32 rounding of the largest.
        singular = torch.linalg.svdvals(W.double())
        torch.testing.assert_close(torch.linalg.svdvals(turned.double()), singular, rtol=0, atol=1e-6 * singular.max())


@pytest.mark.parametrize("case", [c for c in cases("neumann", "magnitude") if c.kind.name == "linear_rank2"], ids=str)
def test_the_energy_sees_what_is_not_a_rotation(case: Case) -> None:
    model = case.trained()
    (turn,) = case.kind.turns
    (before,) = _matrices(case, model, turn)
    model.merge_adapter()
    (after,) = _matrices(case, model, turn)
    if case.options == "magnitude":  # angles do not see a length, singular values do
        assert (torch.linalg.svdvals(after) - torch.linalg.svdvals(before)).abs().max() > 1e-2
    else:
        rows = (before, after) if case.side == "in" else (before.mT, after.mT)
        assert abs(hyperspherical_energy(rows[1]) / hyperspherical_energy(rows[0]) - 1) > 1e-4
