"""A rotated block under torch.compile: how many kernels it has beside those of the base: ``make test-compile``.

Inductor and a C++ compiler at work, some minutes of one core: no file of ``make test`` has it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch._inductor import metrics

from harness.cells import Cell
from harness.llama import PROJECTIONS, build
from orthotune.tuner.config import OFTConfig

CELL = Cell(hidden=128, tokens=8, layers=1, dtype="float32", block_size=32)
#: q/k/v, o, gate/up and down
INPUTS = 4
#: Inductor in this process, for a processor of no particular kind, and its C++ compiled once.
PLAIN = {"compile_threads": 1, "cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}


def _counted(adapted: bool, train: bool) -> int:
    torch.compiler.reset()
    metrics.reset()
    torch.manual_seed(0)
    model, x, call = build(CELL)
    model.requires_grad_(False)
    if adapted:
        config = OFTConfig(target_modules=PROJECTIONS, oft_block_size=CELL.block_size, use_cayley_neumann=False)
        model = get_peft_model(model, config)
    model.train(train)
    options: Any = {**PLAIN, "fx_graph_cache": False}  # a kernel from the cache would not be counted
    compiled = torch.compile(lambda x: call(model, x), fullgraph=True, options=options)
    with torch._functorch.config.patch(enable_autograd_cache=False), torch.set_grad_enabled(train):
        y = compiled(x.requires_grad_(train))
        if train:
            y.sum().backward()
    return metrics.generated_kernel_count


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("train", "more"), [(False, 2), (True, 12)], ids=["evaluation", "training"])
def test_kernels_of_a_rotated_block(train: bool, more: int) -> None:
    """In training the maps from parameters to rotations, and the gradients of both, are computed in each call."""
    base, rotated = _counted(False, train), _counted(True, train)
    assert base > 0
    assert rotated <= base + more * INPUTS, f"{rotated} kernels, {base} without rotations"
