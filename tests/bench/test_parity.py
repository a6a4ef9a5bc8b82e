"""Whole models: the fast path against the paper's formula, with no cache, no batch and no product of blocks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.cells import Cell
from harness.llama import PROJECTIONS, build
from orthotune import OFTConfig, get_peft_model
from orthotune.layers.linear import Linear

CELL = Cell(hidden=128, tokens=24, layers=2, block_size=16)


PROBE = torch.randn(1, CELL.tokens, CELL.hidden, generator=torch.Generator().manual_seed(1))


class Textbook(nn.Module):
    """``y = x BD((I - Q)(I + Q)^-1) W^T`` by dense matrices and plain autograd."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.base_layer.weight.detach(), requires_grad=False)
        self.v, self.size = nn.Parameter(layer.oft_R["default"].weight.detach()), layer.oft_block_size["default"]

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.triu_indices(self.size, self.size, 1)
        upper = self.v.new_zeros(len(self.v), self.size, self.size)
        upper[:, rows, columns] = self.v
        Q, eye = upper - upper.mT, torch.eye(self.size, dtype=self.v.dtype)
        R = torch.block_diag(*torch.linalg.solve(eye + Q, eye - Q))
        return nn.functional.linear(x @ R, self.weight)


def textbook(model: nn.Module) -> nn.Module:
    """A float64 copy whose adapted layers are :class:`Textbook`."""
    plain = copy.deepcopy(model).double()
    for name, module in list(plain.named_modules()):
        if isinstance(module, Linear):
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, Textbook(module))
    return plain


def adapted(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Any]:
    torch.manual_seed(0)
    model, x, call = build(CELL)
    config = OFTConfig(target_modules=PROJECTIONS, oft_block_size=CELL.block_size)
    tuned = get_peft_model(model.to(dtype), config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    return tuned, x.to(dtype), call


# The model's own dtype decides: float32 through two blocks; bfloat16 rounds every activation to 2^-9.
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 5e-2)])
def test_a_model_and_its_gradients_are_those_of_the_formula(dtype: torch.dtype, limit: float) -> None:
    model, x, call = adapted(dtype)
    plain, errors = textbook(model), []
    found, expected = [], []
    for one, kept, wide in ((model, found, x), (plain, expected, x.double())):
        wide = wide.detach().requires_grad_()
        y = call(one, wide)
        (y * PROBE.to(y.dtype)).sum().backward()  # not the norm, which the model's last layer fixes
        kept += [y, wide.grad, *(p.grad for p in one.parameters() if p.requires_grad)]
    assert len(found) == len(expected) == 2 + 7 * CELL.layers
    for one, other in zip(found, expected, strict=True):
        errors.append(((one.double() - other).norm() / other.norm()).item())
    assert max(errors) <= limit, errors


def test_steps_of_training_end_where_the_formula_ends() -> None:
    """Ten steps of an optimizer: what is kept between steps is never a step behind."""
    model, x, call = adapted(torch.float32)
    plain, losses = textbook(model), []
    for one, wide in ((model, x), (plain, x.double())):
        optimizer = torch.optim.AdamW([p for p in one.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(10):
            loss = (call(one, wide) * PROBE).mean() + call(one, -wide).abs().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    # float32 losses; Adam's first steps turn small gradients into full steps, whose signs may differ
    assert abs(losses[0] - losses[1]) <= 1e-4 * abs(losses[1])
