"""Large pages are advice: numbers, shapes and layouts are those of an ordinary tensor."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from orthotune.kernels.huge_pages import LARGE, advised, empty_like
from orthotune.kernels.turn_weight import Step, turn_weight

_SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _huge_bytes(tensor: torch.Tensor) -> int:
    """Bytes in large pages of the mapping that the tensor begins in."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if edges := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            low, high = (int(edge, 16) for edge in edges.groups())
            inside = low <= tensor.data_ptr() + LARGE // 2 < high
        elif inside and line.startswith("AnonHugePages:"):
            found += int(line.split()[1]) * 1024
    return found


@pytest.mark.skipif(sys.platform != "linux" or not _SWITCH.exists(), reason="Linux's large pages")
def test_a_large_weight_lies_in_large_pages_where_the_system_has_them() -> None:
    if "[never]" in _SWITCH.read_text():
        pytest.skip("large pages are switched off")
    weight = empty_like(torch.empty(2049, 8192, dtype=torch.bfloat16))
    weight.fill_(1.0)
    if not _huge_bytes(weight):  # memory may be too cut up to hand one out
        pytest.skip("the system took no advice")
    assert _huge_bytes(weight) >= LARGE


@pytest.mark.parametrize("shape", [(0,), (3, 5), (2049, 1031)], ids=str)
def test_only_the_memory_differs(shape: tuple[int, ...]) -> None:
    like = torch.ones(shape, requires_grad=True)
    found = empty_like(like)
    assert (found.shape, found.dtype, found.stride(), found.requires_grad) == (
        like.shape, like.dtype, like.stride(), False
    )  # fmt: skip
    numbers = torch.arange(1 << 21, dtype=torch.int64)
    assert torch.equal(advised(torch.empty_like(numbers)).copy_(numbers), numbers)


def test_tensors_without_memory_pass() -> None:
    assert advised(torch.empty(4096, 4096, device="meta")).is_meta
    with FakeTensorMode():
        assert advised(torch.empty(4096, 4096)).shape == (4096, 4096)


def test_a_weight_of_another_layout_is_turned_into_the_same_layout() -> None:
    blocks = torch.linalg.qr(torch.randn(512, 4, 4, generator=torch.Generator().manual_seed(0)))[0]
    W = torch.randn(2048, 1031, generator=torch.Generator().manual_seed(1)).t()
    turned = turn_weight(W, [Step("columns", blocks)])
    assert turned.stride() == W.stride()
    reference = (W.double().view(1031, 512, 1, 4) @ blocks.double()).view(1031, 2048)
    # A dot product of four float32 numbers of size 4 at most.
    torch.testing.assert_close(turned.double(), reference, atol=2e-6, rtol=0)
