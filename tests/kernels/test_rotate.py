"""Block-diagonal products against the dense matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from orthotune.kernels.rotate import joined, rotate, rotate_channels, rotate_each, rotate_rows, rotate_stack

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def _random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def _dense(R: Tensor, features: int) -> Tensor:
    return torch.block_diag(*(list(R.double()) * (features // (R.shape[0] * R.shape[-1]))))


def _close(found: Tensor, expected: Tensor, dtype: torch.dtype, roundings: int = 2) -> None:
    # R and the result are rounded to the dtype, the sums run in float32 or better
    limit = roundings * torch.finfo(dtype).eps * expected.abs().max().item()
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max().item() <= limit


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [3, 1], ids=["own", "shared"])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (3, 5, 24), (2, 3, 5, 24), (1, 1, 24), (0, 24), (2, 0, 24)])
def test_inputs_of_any_rank(shape: tuple[int, ...], blocks: int, dtype: torch.dtype) -> None:
    x, R = _random(*shape, dtype=dtype), _random(blocks, 8, 8, dtype=torch.promote_types(dtype, torch.float32))
    y = rotate(x, R)
    assert y.dtype == dtype and y.shape == x.shape
    if x.numel():
        _close(y, x.double() @ _dense(R, 24), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_block_for_the_whole_width(dtype: torch.dtype) -> None:
    x, R = _random(5, 24, dtype=dtype), _random(1, 24, 24)
    _close(rotate(x, R.to(torch.promote_types(dtype, torch.float32))), x.double() @ R[0], dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_sums_run_in_float32(dtype: torch.dtype) -> None:
    # ones: a sum of 1024 kept in bfloat16 would stop growing at 256, in float16 it would be off by 2
    x, R = torch.ones(3, 2048, dtype=dtype), torch.full((2, 1024, 1024), 1.0)
    assert torch.equal(rotate(x, R), torch.full((3, 2048), 1024.0, dtype=dtype))


def _strided() -> list[Tensor]:
    return [_random(24, 6).T, _random(6, 48)[:, ::2], _random(4, 6, 24).transpose(0, 1), _random(24).expand(6, 24)]


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_in_any_memory_layout(number: int, dtype: torch.dtype) -> None:
    x, R = _strided()[number].to(dtype), _random(3, 8, 8)
    _close(rotate(x, R), x.double() @ _dense(R, 24), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("blocks", [3, 1], ids=["own", "shared"])
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("needs", ["both", "input", "rotation"])
def test_gradients_equal_the_dense_ones(needs: str, rows: int, blocks: int, dtype: torch.dtype) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    x = _random(rows, 24, dtype=dtype).requires_grad_(needs != "rotation")
    R = _random(blocks, 8, 8, dtype=wide).requires_grad_(needs != "input")
    weights = _random(rows, 24, dtype=dtype)
    (rotate(x, R) * weights).sum().backward()
    dense_x, dense_R = x.detach().double().requires_grad_(), R.detach().double().requires_grad_()
    (dense_x @ _dense(dense_R, 24) * weights.double()).sum().backward()
    for found, expected in ((x, dense_x), (R, dense_R)):
        assert (found.grad is not None) == found.requires_grad
        if found.grad is not None and expected.grad is not None:
            assert found.grad.dtype == found.dtype
            _close(found.grad, expected.grad, dtype, roundings=4)


def test_a_gradient_that_is_not_contiguous() -> None:
    x, R = _random(5, 24).requires_grad_(), _random(3, 8, 8).requires_grad_()
    rotate(x, R).sum().backward()  # an expanded scalar
    assert x.grad is not None and R.grad is not None
    torch.testing.assert_close(x.grad, torch.ones(5, 24, dtype=torch.float64) @ _dense(R.detach(), 24).T)
    x.grad = None
    (rotate(x, R).T @ _random(5, 2)).square().sum().backward()
    assert torch.isfinite(x.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_lowers_the_input_and_never_float64(dtype: torch.dtype) -> None:
    x, R = _random(5, 24, dtype=dtype).requires_grad_(), _random(3, 8, 8, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = rotate(x, R)
    low = torch.float64 if dtype == torch.float64 else torch.bfloat16
    assert y.dtype == low
    _close(y, x.detach().double() @ _dense(R.detach(), 24), low, roundings=4)
    y.float().square().sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype
    assert R.grad is not None and R.grad.dtype == dtype


FUNCTIONS: list[tuple[Callable[..., Tensor], tuple[int, ...], tuple[int, ...]]] = [
    (rotate, (5, 24), (3, 8, 8)),
    (rotate, (1, 24), (1, 8, 8)),
    (rotate_stack, (2, 5, 24), (2, 3, 8, 8)),
    (rotate_rows, (24, 5), (3, 8, 8)),
]


@pytest.mark.parametrize("number", range(len(FUNCTIONS)))
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_written_in_place(number: int, dtype: torch.dtype) -> None:
    function, shape, blocks = FUNCTIONS[number]
    x, R = _random(*shape, dtype=dtype), _random(*blocks, dtype=torch.promote_types(dtype, torch.float32))
    before = x.clone(), R.clone()
    y = function(x, R)
    assert y.data_ptr() != x.data_ptr()
    assert torch.equal(x, before[0]) and torch.equal(R, before[1])
    assert (x._version, R._version) == (0, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [3, 1], ids=["own", "shared"])
def test_a_stack_turns_each_matrix_by_its_own(blocks: int, dtype: torch.dtype) -> None:
    W, R = _random(2, 5, 24, dtype=dtype), _random(2, blocks, 8, 8)
    for found, one, own in zip(rotate_stack(W, R), W, R, strict=True):
        _close(found, one.double() @ _dense(own, 24), dtype)
    _close(rotate_stack(W[0], R[0]), W[0].double() @ _dense(R[0], 24), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [3, 1], ids=["own", "shared"])
def test_rows_turn_from_the_left(blocks: int, dtype: torch.dtype) -> None:
    W, R = _random(24, 5, dtype=dtype), _random(blocks, 8, 8)
    _close(rotate_rows(W, R), _dense(R, 24) @ W.double(), dtype)
    stack, own = _random(2, 24, 5, dtype=dtype), _random(2, blocks, 8, 8)
    for found, one, turn in zip(rotate_rows(stack, own), stack, own, strict=True):
        _close(found, _dense(turn, 24) @ one.double(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [3, 1], ids=["own", "shared"])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (7, 24), (3, 5, 24), (0, 24)])
def test_each_of_several_rotations_acts_as_if_alone(shape: tuple[int, ...], blocks: int, dtype: torch.dtype) -> None:
    x, whole = _random(*shape, dtype=dtype), _random(3 * blocks, 8, 8, dtype=torch.promote_types(dtype, torch.float32))
    for Rs in (whole.split(blocks), [R.clone() for R in whole.split(blocks)]):
        for y, R in zip(rotate_each(x, Rs), Rs, strict=True):
            assert torch.equal(y, rotate(x, R))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("blocks", [3, 1], ids=["own", "shared"])
@pytest.mark.parametrize("used", [(0, 1, 2), (0, 2), (1,)], ids=str)
def test_gradients_of_several_rotations(blocks: int, used: tuple[int, ...], dtype: torch.dtype) -> None:
    x = _random(2, 5, 24, dtype=dtype).requires_grad_()
    Rs = [_random(blocks, 8, 8, dtype=torch.promote_types(dtype, torch.float32)) + i for i in range(3)]
    Rs = [R.requires_grad_() for R in Rs]
    ys = rotate_each(x, Rs)
    weights = [_random(2, 5, 24, dtype=dtype) for _ in used]
    sum((ys[i] * g).sum() for i, g in zip(used, weights, strict=True)).backward()
    X, G = x.detach().double().flatten(0, 1), [g.double().flatten(0, 1) for g in weights]
    dx = sum(g @ _dense(Rs[i].detach(), 24).T for i, g in zip(used, G, strict=True))
    # every product is rounded; shared blocks are added one by one
    _close(x.grad.flatten(0, 1), dx, dtype, roundings=4)
    for i, R in enumerate(Rs):
        if i not in used:
            assert R.grad is None
            continue
        full = X.T @ G[used.index(i)]
        own = torch.stack([full[j : j + 8, j : j + 8] for j in range(0, 24, 8)])
        _close(R.grad, own if blocks > 1 else own.sum(0, keepdim=True), dtype, roundings=4)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    x, Rs = _random(4, 24), [_random(3, 8, 8).requires_grad_(i == 1) for i in range(2)]
    sum(y.sum() for y in rotate_each(x, Rs)).backward()
    assert x.grad is None and Rs[0].grad is None and Rs[1].grad is not None


def test_joining_copies_only_what_lies_apart() -> None:
    whole = _random(6, 2, 2)
    a, b, c = whole.split([1, 2, 3])
    assert joined([a, b, c]).data_ptr() == whole.data_ptr()
    for parts in ([a, c], [b, a], [a.mT, b], [a, b.clone()]):
        assert torch.equal(joined(parts), torch.cat(parts))
        assert joined(parts).data_ptr() != parts[0].data_ptr()
    assert torch.equal(joined([b]), b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocks", [3, 1], ids=["own", "shared"])
@pytest.mark.parametrize("size", [(), (7,), (3, 5), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_channels_turn_as_features_do(size: tuple[int, ...], blocks: int, last: bool, dtype: torch.dtype) -> None:
    x, R = _random(2, 24, *size, dtype=dtype), _random(blocks, 8, 8, dtype=torch.promote_types(dtype, torch.float32))
    x = x.to(memory_format=torch.channels_last) if last and len(size) == 2 else x
    y = rotate_channels(x.requires_grad_(), R.requires_grad_(), x.dim() - 2)
    _close(y.movedim(1, -1), x.double().movedim(1, -1) @ _dense(R, 24), dtype)
    assert y.stride() == x.stride()
    y.double().square().sum().backward()
    assert x.grad is not None and R.grad is not None
