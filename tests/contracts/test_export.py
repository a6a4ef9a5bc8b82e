"""Exported, traced and compiled: any batch and length in one graph, weights as attributes, no frame over the base's."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from orthotune import OFTConfig, get_peft_model
from tests.support.contract_cases import Case, cases, randomize, rotation_parameters
from tests.support.contract_layers import KINDS, Inputs

#: one kind of each that runs by the same code, for what takes seconds to compile
OUTPUTS = {"linear_rank3", "conv2d_1x1", "experts"}
#: kind -> the one that is compiled and exported in its place: the layer runs by the same code, and what differs is in
#: the base's own function (another rank, padding, grouping or memory format)
ALIKE = {
    "linear_rank2": "linear_rank3", "linear_rank4": "linear_rank3", "conv1d_same": "conv2d",
    "conv2d_reflect": "conv1d_circular", "conv2d_depthwise": "conv2d_groups", "conv2d_channels_last": "conv2d",
    "conv2d_input_channels": "conv2d_1x1", "conv1d_transposed": "conv2d",
}  # fmt: skip
#: experts that are picked by their inputs cut the graph of their base
CUT = {"mixtral_experts", "gpt_oss_experts"}
CASES = cases("exact")
FEWER = [case for case in CASES if case.kind.name not in ALIKE and (case.side == "in" or case.kind.name in OUTPUTS)]
SCALED = [case for case in cases("magnitude") if case.kind.name in ("linear_rank3", "attention") and case.side == "in"]
DYNAMIC = [case for case in FEWER if case.kind.free]


@pytest.fixture(autouse=True)
def _forget() -> Any:
    """Each test starts with an empty compiler."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _grown(case: Case, inputs: Inputs, by: int = 1) -> Inputs:
    """The inputs repeated along every free axis."""
    for axis in case.kind.free:
        inputs = tuple(torch.cat([x] * (1 + by), axis) for x in inputs)
    return inputs


def _shapes(case: Case, inputs: Inputs) -> Any:
    free = {axis: torch.export.Dim.AUTO for axis in case.kind.free}
    return (tuple(free for _ in inputs),)


def _twice(case: Case) -> Inputs:
    """A size of one is never free, so every free axis has at least two."""
    return _grown(case, case.inputs())


def _exported(case: Case, model: nn.Module) -> Any:
    return torch.export.export(model, _twice(case), dynamic_shapes=_shapes(case, case.inputs()))


@pytest.mark.parametrize("case", DYNAMIC, ids=str)
def test_an_exported_program_takes_any_batch_and_length(case: Case) -> None:
    with torch.no_grad():
        model = case.trained().requires_grad_(False)
        program = _exported(case, model).module()
        for by in (1, 4):
            inputs = _grown(case, case.inputs(), by)
            case.close(program(*inputs), model(*inputs))


@cache
def _followed_by_the_base(kind: str) -> bool:
    """Whether a trace of the base sees parameters that change after it."""
    case = next(case for case in CASES if case.kind.name == kind)
    base = case.base()
    try:
        traced = torch.jit.trace(base, case.inputs(), check_trace=False)
    except Exception:
        return False  # it cannot be traced
    for parameter in base.parameters():
        parameter.mul_(1.5)
    return torch.allclose(traced(*case.inputs()), base(*case.inputs()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES + SCALED, ids=str)
@torch.no_grad()
def test_a_trace_follows_changed_parameters_as_the_trace_of_the_base_does(case: Case) -> None:
    if not _followed_by_the_base(case.kind.name):
        return  # weights of its trace are constants
    model = case.trained()
    traced = torch.jit.trace(model, case.inputs(), check_trace=False)
    case.close(traced(*case.inputs()), model(*case.inputs()))
    for parameter in rotation_parameters(model).values():
        parameter.mul_(0.5)
    case.close(traced(*case.inputs()), model(*case.inputs()))


class Pair(nn.Module):
    """Two equal blocks, each compiled by itself as diffusers' ``compile_repeated_blocks`` does."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([case.base(), case.base()])

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return [block(*inputs) for block in self.blocks]


def _sizes(case: Case) -> list[Inputs]:
    if not case.kind.free:
        return [case.inputs()]
    first = case.kind.free[0]
    alone = case.kind.name == "linear_rank3"
    one = [tuple(x.narrow(first, 0, 1) for x in case.inputs())] if alone else []
    return [_twice(case), _grown(case, case.inputs(), 4), *one]


def _frames(pair: nn.Module, case: Case) -> tuple[int, list[list[Tensor]]]:
    """How often the compiler ran, and the outputs, for two sizes and sometimes a batch of one."""
    torch.compiler.reset()
    counter = CompileCounter()
    for block in pair.blocks:  # type: ignore[union-attr]
        block.compile(backend=counter, dynamic=True)
    found = [pair(*inputs) for inputs in _sizes(case)]
    return counter.frame_count, found


@cache
def _frames_of_the_base(kind: str, gradients: bool) -> int:
    case = next(case for case in CASES if case.kind.name == kind)
    return _frames(Pair(case).requires_grad_(gradients), case)[0]


def _adapted(case: Case) -> Any:
    return randomize(get_peft_model(Pair(case), OFTConfig(**case.config)))


def _same_as_its_base(case: Case, training: bool, more: int = 0) -> int:
    model = _adapted(case).train(training)
    with torch.set_grad_enabled(training):
        frames, found = _frames(model.base_model.model, case)
        for block in model.base_model.model.blocks:
            block._compiled_call_impl = None
        plain = [model.base_model.model(*inputs) for inputs in _sizes(case)]
        base = 1 if frames == 1 else _frames_of_the_base(case.kind.name, training)
    for one, other in zip(chain(*found), chain(*plain), strict=True):
        case.close(one, other)
    assert 0 < frames <= base + more
    return frames


@pytest.mark.parametrize("case", [case for case in FEWER + SCALED if case.kind.name not in CUT], ids=str)
def test_equal_blocks_compile_to_no_more_frames_than_their_bases(case: Case) -> None:
    _same_as_its_base(case, training=False)


@pytest.mark.parametrize("case", [case for case in FEWER + SCALED if case.kind.name == "linear_rank3"], ids=str)
def test_equal_blocks_in_training_compile_to_no_more_frames_than_their_bases(case: Case) -> None:
    _same_as_its_base(case, training=True)


LOOPS = [case for case in FEWER if case.kind.name in CUT]


@pytest.mark.parametrize("case", LOOPS, ids=str)
def test_experts_that_cut_the_graph_of_their_base_add_one_frame_to_it(case: Case) -> None:
    """The rotated weights of all parameters, which cannot join the frames of a call that is cut inside."""
    _same_as_its_base(case, training=False, more=1)


@pytest.mark.parametrize(("case", "how"), list(zip(LOOPS, ("batched_mm", "grouped_mm"), strict=True)), ids=str)
def test_experts_in_one_product_compile_to_one_frame(case: Case, how: str) -> None:
    case = replace(case, kind=replace(case.kind, build=lambda: _implemented(KINDS[case.kind.name].build(), how)))
    assert _same_as_its_base(case, training=False) == 1


def _implemented(net: Any, how: str) -> Any:
    net.layer.config._experts_implementation = how
    return net


def test_every_kind_with_a_free_axis_is_here() -> None:
    """Kinds without: a vector, attention whose batch comes second, and experts that are picked by their inputs."""
    beside = {"linear_rank1", "attention", "attention_separate", "attention_output", "mixtral_experts",
              "gpt_oss_experts"}  # fmt: skip
    assert {name for name, kind in KINDS.items() if not kind.free} == beside
