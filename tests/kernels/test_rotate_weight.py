"""A weight turned in runs is the weight turned at once, and little more than it is in memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from orthotune.kernels.rotate_weight import Step, rotate_full, rotate_weight


def _rotation(*shape: int) -> Tensor:
    return torch.linalg.qr(torch.randn(*shape, dtype=torch.float64))[0].float()


def _steps(name: str, copies: tuple[int, ...] = ()) -> list[Step]:
    """For weights (60, 48), or stacks of them."""
    count = copies[0] if copies else 1
    scale = Step("scale_rows", 1 + torch.rand(count * 60))
    return {
        "columns": [Step("columns", _rotation(*copies, 6, 8, 8))],
        "shared": [Step("columns", _rotation(*copies, 1, 6, 6)), Step("rows", _rotation(*copies, 1, 10, 10))],
        "rows": [Step("rows", _rotation(*copies, 15, 4, 4)), scale],
        "one_block": [Step("rows", _rotation(*copies, 1, 60, 60))],
        "unlike": [
            Step("columns", _rotation(*copies, 6, 8, 8)), Step("columns", _rotation(*copies, 4, 12, 12)), scale,
            Step("rows", _rotation(*copies, 12, 5, 5)), Step("rows", _rotation(*copies, 15, 4, 4)),
        ],
        "columns_scaled": [Step("columns", _rotation(*copies, 6, 8, 8)), Step("scale_columns", torch.rand(48))],
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ["columns", "shared", "rows", "one_block", "unlike", "columns_scaled"])
@pytest.mark.parametrize("copies", [(), (3,)], ids=str)
@pytest.mark.parametrize("run", [1, 100, 700, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_in_runs_is_at_once(name: str, copies: tuple[int, ...], run: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    W, steps = torch.randn(*copies, 60, 48).to(dtype), _steps(name, copies)
    expected = rotate_full(W, steps)
    for weight in (W, W.mT.contiguous().mT):
        found = rotate_weight(weight, steps, run=run)
        assert found.dtype == dtype and found.stride() == weight.stride()
        # float32 sums of at most 60, in another order; then one rounding to the dtype
        torch.testing.assert_close(found, expected.to(dtype), rtol=torch.finfo(dtype).eps, atol=2e-6)
        assert rotate_weight(weight, steps, out=weight, run=run) is weight
        assert torch.equal(weight, found)


class _Live(TorchDispatchMode):
    """The most bytes that were held at once in tensors made inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {arg.untyped_storage().data_ptr() for arg in args if isinstance(arg, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in [result] if isinstance(result, Tensor) else []:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known | self._seen:
                self._take(storage.data_ptr(), storage.nbytes(), tensor)
        return result

    def _take(self, place: int, size: int, tensor: Tensor) -> None:
        self._seen.add(place)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(tensor.untyped_storage(), self._give, place, size)

    def _give(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.now -= size


@pytest.mark.parametrize("kind", ["columns", "rows"])
@pytest.mark.parametrize("stored", ["out_in", "in_out"])
def test_memory_is_a_few_runs(kind: Any, stored: str) -> None:
    W, run = torch.randn(512, 768).bfloat16(), 1 << 14
    W = W if stored == "out_in" else W.mT.contiguous().mT
    R = _rotation(W.shape[1 if kind == "columns" else 0] // 16, 16, 16)
    with _Live() as in_place:
        rotate_weight(W, [Step(kind, R)], out=W, run=run)
    with _Live() as new:
        rotate_weight(W, [Step(kind, R)], run=run)
    # float32 copy, product, and the product in the order of the weight; a dense R alone would be a hundred runs
    few = 6 * run * 4
    assert run * 4 <= in_place.most <= few
    assert W.nbytes <= new.most <= W.nbytes + few
    with _Live() as at_once:
        rotate_full(W, [Step(kind, R)])
    assert at_once.most >= 2 * W.nbytes  # the counter counts


def test_a_weight_of_another_layout_is_turned_into_the_same_layout() -> None:
    blocks = torch.linalg.qr(torch.randn(512, 4, 4, generator=torch.Generator().manual_seed(0)))[0]
    W = torch.randn(2048, 1031, generator=torch.Generator().manual_seed(1)).t()
    turned = rotate_weight(W, [Step("columns", blocks)])
    assert turned.stride() == W.stride()
    reference = (W.double().view(1031, 512, 1, 4) @ blocks.double()).view(1031, 2048)
    # A dot product of four float32 numbers of size 4 at most.
    torch.testing.assert_close(turned.double(), reference, atol=2e-6, rtol=0)
