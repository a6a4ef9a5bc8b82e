"""What is special about convolutions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune import OFTConfig, get_peft_model
from tests.support.layer_models import linear


class Weighted(nn.Conv2d):
    """A subclass whose forward only it knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.weight.sum()


def test_a_forward_of_its_own_sees_the_turned_weight() -> None:
    model, x = linear(base=Weighted(4, 8, 3)), torch.randn(2, 4, 6, 6)
    turned = model(x)
    model.merge_adapter()
    torch.testing.assert_close(turned, model(x), rtol=0, atol=1e-4)  # float32, a sum of 288 weights


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (nn.Conv2d(4, 8, 1), None),
        (nn.Conv2d(4, 8, (1, 3)), "convolutions"),
        (nn.Conv1d(4, 8, 1), "convolutions"),
        (nn.Conv3d(4, 8, 1), "convolutions"),
    ],
    ids=str,
)
def test_what_stock_peft_computes_alike(base: nn.Module, expected: str | None) -> None:
    assert linear(base=base).base_model.model.layer.beyond_peft == expected


def test_without_a_batch() -> None:
    model, x = linear(base=nn.Conv2d(4, 8, 3, padding=1)), torch.randn(4, 6, 5)
    torch.testing.assert_close(model(x), model(x[None])[0], rtol=0, atol=1e-5)


def test_every_group_turns_alike() -> None:
    model = linear(base=nn.Conv1d(8, 8, 1, groups=2, bias=False))
    x = torch.randn(1, 4, 5)
    layer = model.base_model.model.layer
    with torch.no_grad():
        layer.base_layer.weight[4:] = layer.base_layer.weight[:4]
    y = model(torch.cat([x, x], 1))
    assert torch.equal(y[:, :4], y[:, 4:])


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"padding": 1, "padding_mode": "reflect"}, {"bias": False}])
def test_a_kernel_of_one_point_turns_its_input(changes: dict[str, Any]) -> None:
    """To the numbers of the turned weight, and without a gradient of the weight's size."""
    torch.manual_seed(0)
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64)
    model = get_peft_model(
        nn.Sequential(nn.Conv2d(24, 10, 1, dtype=torch.float64, **changes)),
        OFTConfig(oft_block_size=8, target_modules=["0"], init_weights=False),
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        kept: list[torch.Size] = []
        y = model(x)
    model.merge_adapter()
    torch.testing.assert_close(y, model(x))
    assert not any(shape[:2] == (10, 24) and shape != (10, 24, 1, 1) for shape in kept)
