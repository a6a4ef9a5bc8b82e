"""The Triton kernels, run by Triton's interpreter where there is no GPU, against a float64 reference."""

from __future__ import annotations

import pytest
import torch

from orthotune.kernels import choose
from orthotune.kernels.from_parameters import rotation_of
from orthotune.kernels.rotate import rotate, rotate_each
from orthotune.rotation.measure import orthogonality_error
from orthotune.rotation.packing import element_count, unpack
from orthotune.rotation.spec import RotationSpec

pytestmark = pytest.mark.slow

pytest.importorskip("triton", reason="Triton is optional; CI installs it")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def stored(block_size, rows, norm, seed=0):
    v = torch.randn(rows, element_count(block_size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return v * norm / torch.linalg.matrix_norm(unpack(v, block_size), 2).amax()


def exact(v, block_size):
    eye = torch.eye(block_size, dtype=v.dtype)
    return torch.linalg.solve(eye + unpack(v, block_size), eye - unpack(v, block_size))


@pytest.mark.parametrize("block_size", [2, 8, 12, 16, 31, 32])
@pytest.mark.parametrize("norm", [0.01, 0.6, 4.0])
def test_rotation_and_its_gradient(block_size, norm):
    v = stored(block_size, 3, norm)
    weight = torch.randn(3, block_size, block_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = v.clone().requires_grad_()
    (exact(reference, block_size) * weight).sum().backward()
    mine = v.float().to(DEVICE).requires_grad_()
    with choose.forced("triton"):
        R = rotation_of(RotationSpec(block_size=block_size), mine)
        (R * weight.float().to(DEVICE)).sum().backward()
    assert orthogonality_error(R.detach()).max() < 5e-6
    # float32 with a condition number of up to 1 + 4^2, over at most 32 terms
    torch.testing.assert_close(R.detach().cpu().double(), exact(v, block_size), atol=2e-6, rtol=0)
    scale = reference.grad.abs().max()
    assert (mine.grad.cpu().double() - reference.grad).abs().max() < 3e-6 * scale


@pytest.mark.parametrize(
    ("block_size", "count", "rows"), [(8, 3, 5), (12, 2, 70), (32, 2, 33), (100, 2, 9), (256, 1, 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shared", [False, True])
def test_rotated_input_and_both_gradients(block_size, count, rows, dtype, shared):
    draw = torch.Generator().manual_seed(2)
    stored_blocks = 1 if shared else count
    x = torch.randn(rows, count * block_size, generator=draw).to(dtype)
    grad = torch.randn(rows, count * block_size, generator=draw).to(dtype)
    R = exact(stored(block_size, stored_blocks, 0.7), block_size).float()
    xr, Rr = x.double().requires_grad_(), R.double().requires_grad_()
    (xr @ torch.block_diag(*Rr.expand(count, -1, -1)) * grad.double()).sum().backward()
    xm, Rm = x.to(DEVICE).requires_grad_(), R.to(DEVICE).requires_grad_()
    with choose.forced("triton"):
        y = rotate(xm, Rm)
        y.backward(grad.to(DEVICE))
    # One rounding of R and one of the result in the input's dtype; dR is summed in float32.
    eps = torch.finfo(dtype).eps
    expected = x.double() @ torch.block_diag(*R.double().expand(count, -1, -1))
    assert (y.detach().cpu().double() - expected).abs().max() < 4 * eps * expected.abs().max() + 1e-5
    assert (xm.grad.cpu().double() - xr.grad).abs().max() < 4 * eps * xr.grad.abs().max() + 1e-5
    assert (Rm.grad.cpu().double() - Rr.grad).abs().max() < 1e-5 * rows


@pytest.mark.parametrize(("size", "norm"), [(5, 0.5), (16, 4.0), (32, 100.0)])
def test_small_inverse(size, norm):
    """The symmetric part is more than the identity, as in an elimination by blocks."""
    from orthotune.kernels.triton_cayley import small_inverse

    Q = unpack(stored(size, 3, norm), size)
    A = torch.eye(size, dtype=torch.float64) + Q + 0.3 * Q.mT @ Q
    found = small_inverse(A.float().to(DEVICE)).cpu().double()
    # Rounding of an elimination without pivots, of numbers of up to 3,000, for an inverse of at most 1.
    torch.testing.assert_close(found, torch.linalg.inv(A.float().double()), atol=2e-5, rtol=0)


@pytest.mark.parametrize("block_size", [48, 100])
def test_a_large_block_by_products_and_its_gradient(block_size):
    v = stored(block_size, 2, 0.6)
    weight = torch.randn(2, block_size, block_size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    reference = v.clone().requires_grad_()
    (exact(reference, block_size) * weight).sum().backward()
    mine = v.float().to(DEVICE).requires_grad_()
    with choose.forced("products"):
        R = rotation_of(RotationSpec(block_size=block_size), mine)
        (R * weight.float().to(DEVICE)).sum().backward()
    torch.testing.assert_close(R.detach().cpu().double(), exact(v, block_size), atol=2e-6, rtol=0)
    assert (mine.grad.cpu().double() - reference.grad).abs().max() < 3e-6 * reference.grad.abs().max()


@pytest.mark.parametrize(
    ("block_size", "turns", "shared"), [(12, 2, True), (32, 3, False), (64, 3, True), (100, 2, False)]
)
def test_several_rotations_of_one_input_and_their_gradients(block_size, turns, shared):
    draw = torch.Generator().manual_seed(3)
    count, rows = 2, 37
    x = torch.randn(rows, count * block_size, generator=draw)
    grads = [torch.randn(rows, count * block_size, generator=draw) for _ in range(turns)]
    rotations = [exact(stored(block_size, 1 if shared else count, 0.7, seed), block_size).float()
                 for seed in range(turns)]  # fmt: skip
    xr, Rr = x.double().requires_grad_(), [R.double().requires_grad_() for R in rotations]
    for R, grad in zip(Rr, grads, strict=True):
        (xr @ torch.block_diag(*R.expand(count, -1, -1)) * grad.double()).sum().backward()
    xm, Rm = x.to(DEVICE).requires_grad_(), [R.to(DEVICE).requires_grad_() for R in rotations]
    with choose.forced("triton"):
        outputs = rotate_each(xm, Rm)
        torch.autograd.backward(outputs, [grad.to(DEVICE) for grad in grads])
    for y, R in zip(outputs, rotations, strict=True):
        expected = x.double() @ torch.block_diag(*R.double().expand(count, -1, -1))
        torch.testing.assert_close(y.detach().cpu().double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(xm.grad.cpu().double(), xr.grad, atol=2e-5, rtol=0)
    for mine, own in zip(Rm, Rr, strict=True):  # a sum of 37, or 74, products
        torch.testing.assert_close(mine.grad.cpu().double(), own.grad, atol=1e-4, rtol=0)


def test_kernels_that_do_not_start_give_way_to_torch(monkeypatch):
    from orthotune.kernels import rotate as module
    from orthotune.kernels import triton_rotate

    def fails(*_):
        raise RuntimeError("Triton Error [CUDA]: out of resource: shared memory")

    monkeypatch.setattr(choose, "_refused", set())
    monkeypatch.setattr(module, "choose", lambda *_: choose.Choice("triton", "a GPU that nobody knows"))
    for name in ("rotate_forward", "rotate_backward"):
        monkeypatch.setattr(triton_rotate, name, fails)
    x, R = torch.randn(5, 16, requires_grad=True), exact(stored(8, 2, 0.7), 8).float().requires_grad_()
    with pytest.warns(RuntimeWarning, match="could not be started"):
        y = rotate(x, R)
        y.sum().backward()
    # the dense product sums in another order
    torch.testing.assert_close(y, x @ torch.block_diag(*R), rtol=0, atol=1e-5)
    assert x.grad is not None and R.grad is not None


def test_no_rows_at_all():
    with choose.forced("triton"):
        assert rotate(torch.zeros(0, 8, device=DEVICE), torch.eye(8, device=DEVICE)[None]).shape == (0, 8)
