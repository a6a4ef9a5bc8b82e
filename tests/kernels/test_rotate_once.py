"""A weight turned by one rotation: values, both gradients, and what is kept for the backward."""

from __future__ import annotations

import pytest
import torch

from orthotune.kernels.rotate_once import rotate_once


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("copies", [(), (3,)], ids=["matrix", "stack"])
def test_values_and_gradients(columns: bool, shared: bool, copies: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    W = torch.randn(*copies, 6, 9, generator=draw, dtype=torch.float64).requires_grad_()
    count = 1 if shared else (3 if columns else 2)
    F = torch.randn(*copies, count, 3, 3, generator=draw, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda W, F: rotate_once(W, F, columns), (W, F))
    for index in range(copies[0] if copies else 1):
        w, f = (T[index] if copies else T for T in (W, F))
        dense = torch.block_diag(*f.expand(3 if columns else 2, 3, 3))
        result = rotate_once(W, F, columns)
        torch.testing.assert_close(result[index] if copies else result, w @ dense if columns else dense @ w)


def test_nothing_of_the_weights_size_is_kept() -> None:
    W, F = torch.randn(64, 96).bfloat16(), torch.randn(6, 16, 16, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rotate_once(W, F, True)
    own = {W.untyped_storage().data_ptr(), F.untyped_storage().data_ptr()}
    assert {t.untyped_storage().data_ptr() for t in kept} == own
