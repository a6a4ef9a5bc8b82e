"""Large blocks on a GPU: elimination by halves, against a float64 solution."""

from __future__ import annotations

import pytest
import torch

from orthotune.kernels.by_blocks import exact_by_blocks, full_float32, inverse_by_blocks
from orthotune.rotation.measure import orthogonality_error
from orthotune.rotation.packing import element_count, unpack


def _inverse(A):
    return torch.linalg.inv_ex(A).inverse


# Elimination without pivots rounds in proportion to the norm of the product of its factors, up to 1 + |Q|^2: a
# rotation by 179 degrees (norm 100) is still right to 1e-5.
@pytest.mark.parametrize(("norm", "tolerance"), [(0.01, 1e-6), (4.0, 2e-6), (100.0, 2e-5)])
@pytest.mark.parametrize("block_size", [33, 64, 100, 128])
def test_a_rotation_of_any_angle(block_size, norm, tolerance):
    v = torch.randn(3, element_count(block_size), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v = (v * norm / torch.linalg.matrix_norm(unpack(v, block_size), 2).amax()).float()
    R = exact_by_blocks(v, block_size, _inverse)
    Q, eye = unpack(v.double(), block_size), torch.eye(block_size, dtype=torch.float64)
    torch.testing.assert_close(R.double(), torch.linalg.solve(eye + Q, eye - Q), atol=tolerance, rtol=0)
    assert orthogonality_error(R).max() < 2e-5


def test_small_inverses_are_never_larger_than_a_program_holds():
    asked = []

    def small(A):
        asked.append(A.shape[-1])
        return _inverse(A)

    inverse_by_blocks(torch.eye(200)[None] * 2, small)
    assert len(asked) == 8 and max(asked) <= 32


def test_a_program_that_allows_tf32_gets_full_float32():
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, True
    try:
        with full_float32(torch.device("cuda")):
            assert not matmul.allow_tf32
        assert matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before
