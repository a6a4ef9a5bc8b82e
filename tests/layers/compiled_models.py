"""A rotated block under torch.compile: how many kernels it has beside those of the base: ``make test-compile``.

Inductor and a C++ compiler at work, some minutes of one core: no file of ``make test`` has it.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from peft import get_peft_model
from torch._inductor import metrics
from torch._inductor.utils import run_and_get_code

from harness.cells import Cell
from harness.llama import PROJECTIONS, build
from orthotune.tuner.config import OFTConfig

CELL = Cell(hidden=128, tokens=8, layers=1, dtype="float32", block_size=32)
DECODED = replace(CELL, tokens=1, mode="decode")
#: q/k/v, o, gate/up and down
INPUTS = 4
#: Inductor in this process, for a processor of no particular kind, and its C++ compiled once.
PLAIN = {"compile_threads": 1, "cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}


#: a product of a library, or an operation of ours, in the code that Inductor writes
CALL = re.compile(r"\b(?:extern_kernels\.\w+|torch\.ops\.\w+\.\w+(?:\.\w+)?)\(")


class Counted(NamedTuple):
    """What one call of compiled code runs: kernels that Inductor makes, and calls of libraries and of operations."""

    kernels: int
    calls: int


def _counted(adapted: bool, train: bool, cell: Cell = CELL) -> Counted:
    torch.compiler.reset()
    metrics.reset()
    torch.manual_seed(0)
    model, x, call = build(cell)
    model.requires_grad_(False)
    if adapted:
        config = OFTConfig(target_modules=PROJECTIONS, oft_block_size=cell.block_size, use_cayley_neumann=False)
        model = get_peft_model(model, config)
    model.train(train)
    options: Any = {**PLAIN, "fx_graph_cache": False}  # a kernel from the cache would not be counted
    compiled = torch.compile(lambda x: call(model, x), fullgraph=True, options=options)
    with torch._functorch.config.patch(enable_autograd_cache=False), torch.set_grad_enabled(train):
        y, code = run_and_get_code(compiled, x.requires_grad_(train))
        if train:
            y.sum().backward()
    return Counted(metrics.generated_kernel_count, sum(len(CALL.findall(one)) for one in code))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("train", "more"), [(False, 2), (True, 12)], ids=["evaluation", "training"])
def test_kernels_of_a_rotated_block(train: bool, more: int) -> None:
    """In training the maps from parameters to rotations, and the gradients of both, are computed in each call."""
    base, rotated = _counted(False, train).kernels, _counted(True, train).kernels
    assert base > 0
    assert rotated <= base + more * INPUTS, f"{rotated} kernels, {base} without rotations"


@pytest.mark.timeout(1800)
def test_kernels_of_a_decoded_token() -> None:
    """The rotations are there: each is looked up by one call, and multiplied inside kernels that the base has, too."""
    base, rotated = _counted(False, False, DECODED), _counted(True, False, DECODED)
    assert base.kernels > 0 and base.calls > 0
    assert rotated.kernels <= base.kernels + 2, f"{rotated} with rotations, {base} without"
    assert rotated.calls == base.calls + len(PROJECTIONS), f"{rotated} with rotations, {base} without"
