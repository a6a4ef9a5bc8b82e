"""Exported, traced and compiled: any batch and length in one graph, weights as attributes, no frame over the base's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from contracts.cases import Case, cases, randomize, rotation_parameters
from contracts.layers import KINDS, Inputs
from orthotune import OFTConfig, get_peft_model

#: kind -> axes of every input that may have any size: batch and length
FREE: dict[str, tuple[int, ...]] = {
    "linear_rank2": (0,), "linear_rank3": (0, 1), "linear_rank4": (0, 1, 2), "transposed_linear": (0, 1),
    "conv1d_circular": (0, 2), "conv1d_same": (1,), "conv2d": (0, 2, 3), "conv2d_reflect": (0, 2, 3),
    "conv2d_groups": (0, 2, 3), "conv2d_depthwise": (0, 2, 3), "conv2d_channels_last": (0, 2, 3),
    "conv2d_1x1": (0, 2, 3), "conv3d": (0,), "embedding": (0, 1), "attention_batch_first": (0, 1),
    "encoder_layer": (0, 1), "experts": (0,), "experts_input_first": (0,), "parameter": (0,),
}  # fmt: skip
CASES = [case for case in cases("exact", "magnitude") if case.options == "exact" or case.side == "in"]
DYNAMIC = [case for case in CASES if case.kind.name in FREE and case.options == "exact"]


@pytest.fixture(autouse=True)
def _forget() -> Any:
    """Each test starts with an empty compiler."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def _grown(case: Case, inputs: Inputs, by: int = 1) -> Inputs:
    """The inputs repeated along every free axis."""
    for axis in FREE[case.kind.name]:
        inputs = tuple(torch.cat([x] * (1 + by), axis) for x in inputs)
    return inputs


def _shapes(case: Case, inputs: Inputs) -> Any:
    free = {axis: torch.export.Dim.AUTO for axis in FREE[case.kind.name]}
    return (tuple(free for _ in inputs),)


def _twice(case: Case) -> Inputs:
    """A size of one is never free, so every free axis has at least two."""
    return _grown(case, case.inputs())


def _exported(case: Case, model: nn.Module) -> Any:
    return torch.export.export(model, _twice(case), dynamic_shapes=_shapes(case, case.inputs()))


@pytest.mark.parametrize("case", DYNAMIC, ids=str)
def test_an_exported_program_takes_any_batch_and_length(case: Case) -> None:
    sizes = [_grown(case, case.inputs(), by) for by in (1, 2, 4)]
    with torch.no_grad():
        try:
            base = _exported(case, case.base()).module()
            for inputs in sizes:
                base(*inputs)
        except Exception:
            return  # the base's own program does not take them
        model = case.trained().requires_grad_(False)
        program = _exported(case, model).module()
        for inputs in sizes:
            case.close(program(*inputs), model(*inputs))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_trace_follows_changed_parameters_as_the_trace_of_the_base_does(case: Case) -> None:
    with torch.no_grad():
        base = case.base()
        try:
            followed = torch.jit.trace(base, case.inputs(), check_trace=False)
        except Exception:
            return  # the base cannot be traced
        for parameter in base.parameters():
            parameter.mul_(1.5)
        if not torch.allclose(followed(*case.inputs()), base(*case.inputs()), rtol=1e-4, atol=1e-5):
            return  # weights of its trace are constants
        model = case.trained()
        traced = torch.jit.trace(model, case.inputs(), check_trace=False)
        case.close(traced(*case.inputs()), model(*case.inputs()))
        for parameter in rotation_parameters(model).values():
            parameter.mul_(0.5)
        case.close(traced(*case.inputs()), model(*case.inputs()))


def _frames(model: nn.Module, sizes: list[Inputs], **options: Any) -> tuple[int, list[Tensor]]:
    torch.compiler.reset()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter, **options)
    with torch.no_grad():
        found = [compiled(*inputs) for inputs in sizes]
    return counter.frame_count, found


@pytest.mark.parametrize("case", DYNAMIC, ids=str)
def test_a_compiled_module_has_no_more_frames_than_its_base(case: Case) -> None:
    sizes = [_grown(case, case.inputs(), by) for by in (1, 2, 4)]
    base, _ = _frames(case.base(), sizes, dynamic=True)
    model = case.trained()
    frames, found = _frames(model.base_model.model, sizes, dynamic=True)
    with torch.no_grad():
        for one, inputs in zip(found, sizes, strict=True):
            case.close(one, model(*inputs))
    assert frames <= base


class Block(nn.Module):
    """A block with a forward of its own: torch's own containers are not compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Blocks(nn.Module):
    """Equal blocks, each compiled by itself as diffusers' ``compile_repeated_blocks`` does."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return x


@pytest.mark.parametrize("fields", [{}, {"side": "out"}, {"magnitude": True}], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_equal_blocks_share_one_compiled_frame(training: bool, fields: dict[str, Any]) -> None:
    def frames(model: nn.Module) -> tuple[int, Tensor]:
        torch.compiler.reset()
        counter, inner = CompileCounter(), model.base_model.model if hasattr(model, "base_model") else model
        for block in inner.blocks:
            block.compile(backend=counter, dynamic=True)
        with torch.set_grad_enabled(training):
            for rows in (3, 5, 7):
                found = model(torch.randn(rows, 12, generator=torch.Generator().manual_seed(rows)))
        return counter.frame_count, found

    torch.manual_seed(0)
    base, _ = frames(Blocks(4).train(training))
    torch.manual_seed(0)
    config = OFTConfig(oft_block_size=4, target_modules=["up", "down"], **fields)
    model = randomize(get_peft_model(Blocks(4), config)).train(training)
    count, found = frames(model)
    torch.compiler.reset()
    torch._dynamo.config.disable, kept = True, torch._dynamo.config.disable
    try:
        plain = model(torch.randn(7, 12, generator=torch.Generator().manual_seed(7)))
    finally:
        torch._dynamo.config.disable = kept
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)  # float32, sums in another order
    assert 0 < count <= base


def test_every_kind_with_a_free_axis_is_here() -> None:
    """Kinds without: a vector, attention whose batch comes second, and experts that are picked by their inputs."""
    beside = {"linear_rank1", "attention", "attention_separate", "attention_output", "mixtral_experts",
              "gpt_oss_experts"}  # fmt: skip
    assert FREE.keys() | beside == KINDS.keys()
