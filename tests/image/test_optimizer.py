"""The schedule, and an average by hand."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn

from orthotune.errors import RecipeError
from orthotune.image.loop.average import Average
from orthotune.image.loop.optimizer import make_optimizer, rate
from orthotune.image.loop.options import LoopOptions


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 2, 2, 2, 2, 2]), ("linear", [1, 2, 2, 1.5, 1, 0.5]), ("cosine", [1, 2, 2, 1.7071, 1, 0.2929])],
)
def test_rates(schedule: str, expected: list[float]) -> None:
    for warmup in (2, 1 / 3):
        options = LoopOptions(2.0, steps=6, warmup=warmup, schedule=schedule)  # type: ignore[arg-type]
        assert [rate(step, options) for step in range(6)] == pytest.approx(expected, abs=1e-4)


def test_the_optimizer_is_one_kernel_over_what_it_is_given() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = make_optimizer({"weight": weight}, LoopOptions(0.5, steps=1, weight_decay=0.1))
    assert optimizer.param_groups[0]["fused"] and optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is here")
def test_eight_bits_without_bitsandbytes() -> None:
    with pytest.raises(RecipeError, match=r"optimizer=adamw-8bit. Found: no bitsandbytes.*orthotune\[quant-bnb\]"):
        make_optimizer({"w": nn.Parameter(torch.ones(1))}, LoopOptions(0.5, steps=1, optimizer="adamw-8bit"))


def test_an_average_by_hand() -> None:
    weight = nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    average = Average({"weight": weight}, decay=0.5)
    assert torch.equal(average.values()["weight"], weight)
    for value in (2.0, 8.0, 4.0):
        weight.data.fill_(value)
        average.update()
    # (0.25 · 2 + 0.5 · 8 + 4) / 1.75, kept in float32 and given in the parameter's dtype
    assert average.sums["weight"].dtype == torch.float32
    assert torch.equal(average.values()["weight"], torch.full((2,), 8.5 / 1.75).bfloat16())
    with pytest.raises(KeyError), average.applied():
        assert torch.equal(weight, average.values()["weight"])
        raise KeyError
    assert weight.tolist() == [4.0, 4.0]
