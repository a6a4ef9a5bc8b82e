"""Gradient checkpointing of either kind gives the gradients of a plain step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.support.layer_models import everything, rotations


def _gradients(how: str, **fields: object) -> list[Tensor]:
    model = everything(**fields).train()
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    net = model.base_model.model

    def body(x: Tensor) -> Tensor:
        x = net.conv(x.mT).mT
        x = x + net.attention(x, x, x, need_weights=False)[0]
        return net.head(net.mix(x).tanh())

    torch.manual_seed(7)  # the same blocks are dropped every time
    if how == "plain":
        output = body(x)
    else:
        output = checkpoint(body, x, use_reentrant=how == "reentrant")
    output.square().sum().backward()
    used = [p.grad for n, p in model.named_parameters() if "oft_" in n and "embed" not in n]
    return [x.grad, *used]


FIELDS = [
    {},
    {"module_dropout": 0.4},
    {"module_dropout": 0.4, "block_share": True},
    {"coft": True, "eps": 0.3},
    {"magnitude": True, "use_cayley_neumann": True},
]


@pytest.mark.parametrize("how", ["reentrant", "not_reentrant"])
@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(fields) or "exact")
def test_the_same_gradients(how: str, fields: dict[str, object]) -> None:
    plain, found = _gradients("plain", **fields), _gradients(how, **fields)
    assert all(grad is not None for grad in found) and found[0].any()
    for grad, expected in zip(found, plain, strict=True):
        # the same operations on the same numbers; a sum may run in another order
        torch.testing.assert_close(grad, expected, rtol=1e-5, atol=1e-5)


def test_dropout_takes_part() -> None:
    exact, dropped = _gradients("plain"), _gradients("plain", module_dropout=0.4)
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(exact, dropped, strict=True))


def test_the_first_pass_does_not_leave_a_cache_behind_that_training_reads() -> None:
    model = everything().train()
    with torch.no_grad():
        model.base_model.model.mix(torch.ones(2, 8))
    (rotation,) = rotations(model.base_model.model.mix)
    assert rotation().requires_grad
