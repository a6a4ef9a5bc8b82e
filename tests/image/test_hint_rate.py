"""The hint encoder starts from nothing and learns at a rate of its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthotune.image.loop.optimizer import make_optimizer, rate, set_rate
from orthotune.image.loop.options import LoopOptions


@pytest.mark.parametrize(("said", "expected"), [(4e-3, 4e-3), (None, 1e-3)])
def test_the_first_step_of_adam_is_as_long_as_the_rate(said: float | None, expected: float) -> None:
    names = ("denoiser.block.weight", "hint_encoder.head.weight")
    weights = {name: nn.Parameter(torch.zeros(3)) for name in names}
    options = LoopOptions(1e-3, steps=2, hint_learning_rate=said, schedule="linear")
    optimizer = make_optimizer(weights, options)
    for weight in weights.values():
        weight.grad = torch.tensor([1.0, -2.0, 3.0])
    set_rate(optimizer, rate(0, options))
    optimizer.step()
    moved = [weight.detach() for weight in weights.values()]
    # without moments of its past Adam moves by rate * sign(gradient), but for the 1e-8 in its denominator
    torch.testing.assert_close(moved[0].abs(), torch.full((3,), 1e-3), atol=0, rtol=1e-6)
    torch.testing.assert_close(moved[1].abs(), torch.full((3,), expected), atol=0, rtol=1e-6)
    set_rate(optimizer, rate(1, options))
    assert sorted(group["lr"] for group in optimizer.param_groups) == pytest.approx(sorted([5e-4, expected / 2]))


def test_a_model_without_hints_has_one_group() -> None:
    optimizer = make_optimizer({"denoiser.weight": nn.Parameter(torch.zeros(1))}, LoopOptions(1e-3, steps=2))
    assert len(optimizer.param_groups) == 1
