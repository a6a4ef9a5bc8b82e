"""The fused LoRA computes what PEFT's does, in outputs and gradients, and saves less."""

from __future__ import annotations

import pytest
import torch

from harness.cells import Cell
from harness.contenders import FUSED, stirred
from harness.saved_bytes import saved_bytes
from harness.subject import subject

CELL = Cell(hidden=128, tokens=7, layers=1, dtype="float32")
LORA, FUSED = FUSED[1], FUSED[2]


@pytest.fixture(scope="module")
def models():
    frozen = subject(CELL, torch.device("cpu"))
    stock, fused = stirred(LORA, frozen, CELL), stirred(FUSED, frozen, CELL)
    named = dict(stock.named_parameters())
    pairs = []
    for place in ("self_attn.q_proj.every", "self_attn.o_proj.0", "mlp"):
        module = fused.layers[0].get_submodule(place)
        names = {
            "self_attn.q_proj.every": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "self_attn.o_proj.0": ("self_attn.o_proj",),
        }.get(place, ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"))
        for index, name in enumerate(names):
            for side, part in (("A", module.down), ("B", module.up)):
                pairs.append((part[index], named[f"base_model.model.layers.0.{name}.lora_{side}.default.weight"]))
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.copy_(theirs)
    return frozen, stock, fused, pairs


def test_outputs_and_gradients_are_those_of_peft(models) -> None:
    frozen, stock, fused, pairs = models
    assert sum(p.requires_grad for p in fused.parameters()) == len(pairs) == 14
    expected, found = (frozen.call(model, frozen.x) for model in (stock, fused))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # float32, sums in another order
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    theirs = torch.autograd.grad(expected, [frozen.x, *(pair[1] for pair in pairs)], seed)
    mine = torch.autograd.grad(found, [frozen.x, *(pair[0] for pair in pairs)], seed)
    for one, other in zip(mine, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


def test_less_is_saved_than_by_peft(models) -> None:
    frozen, stock, fused, _ = models
    counts = [saved_bytes(lambda model=model: frozen.call(model, frozen.x), model) for model in (stock, fused)]
    assert counts[1] < 0.8 * counts[0]
