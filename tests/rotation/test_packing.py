"""Packed vector <-> skew matrix."""

from __future__ import annotations

import pytest
import torch

from orthotune.errors import OrthotuneError
from orthotune.rotation.packing import block_size_of, element_count, pack, triangle, unpack


@pytest.mark.parametrize("block_size", [2, 3, 5, 8, 32])
def test_round_trip(block_size: int) -> None:
    v = torch.randn(2, 3, element_count(block_size))
    Q = unpack(v, block_size)
    assert Q.shape == (2, 3, block_size, block_size)
    assert torch.equal(Q, -Q.mT)
    assert torch.equal(pack(Q), v)


def test_the_upper_triangle_is_read_row_by_row() -> None:
    Q = unpack(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), 4)
    upper = torch.tensor([[0.0, 1, 2, 3], [0, 0, 4, 5], [0, 0, 0, 6], [0, 0, 0, 0]])
    assert torch.equal(Q.triu(), upper)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert unpack(torch.ones(3, dtype=dtype), 3).dtype == dtype


def test_block_size_of_every_count() -> None:
    sizes = {element_count(b): b for b in range(2, 40)}
    for elements in range(1, 600):
        if elements in sizes:
            assert block_size_of(elements) == sizes[elements]
        else:
            with pytest.raises(OrthotuneError, match=f"a packed block of {elements} elements. Needed: b "):
                block_size_of(elements)


def test_an_index_made_in_inference_mode_serves_training() -> None:
    size = 37  # no other test uses it, so that it is made here
    with torch.inference_mode():
        unpack(torch.randn(element_count(size)), size)
    assert not triangle(size, torch.device("cpu")).is_inference()
    v = torch.randn(element_count(size), requires_grad=True)
    unpack(v, size)[0].sum().backward()
    assert v.grad is not None and v.grad.count_nonzero() == size - 1
