"""No write to a parameter is missed, however it was made: the next output is that of a copy that has computed nothing.

Every case goes through all writes, one after another, each in another state: training or evaluation, with or without
a backward before it, at strength 1 and below.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from diffusers.training_utils import EMAModel
from peft import PeftModel
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.group import group
from orthotune.layers.shared_input import share_inputs
from tests.support.contract_cases import (
    OPTIONS,
    Case,
    batched,
    cases,
    one_set_of_weights,
    plain_and_full,
    projections,
    rotation_parameters,
    snapshot,
    two_alike,
    within_rounding,
)
from tests.support.contract_layers import Inputs

CASES = plain_and_full()
# One kind for each path that a call can take, for each compiles for a second or more.
COMPILED = [case for case in cases("exact") if case.side == "in" and case.kind.name in (
    "linear_rank2", "conv2d", "embedding", "attention_batch_first", "experts",
)]  # fmt: skip
Parameters = dict[str, nn.Parameter]
# A write, after each step of which the output is compared.
Write = Callable[[nn.Module, Parameters], Iterator[None] | None]


def _data(_: nn.Module, parameters: Parameters) -> None:
    for p in parameters.values():
        p.data.mul_(0.9)


def _assigned(_: nn.Module, parameters: Parameters) -> None:
    for p in parameters.values():
        p.data = p.data * 1.1


def _numpy(_: nn.Module, parameters: Parameters) -> None:
    for p in parameters.values():
        array = p.detach().numpy()
        array *= 0.9


def _kept_view(model: nn.Module, parameters: Parameters) -> Iterator[None]:
    views = [p.detach().view(-1)[::2] for p in parameters.values()]
    for factor in (1.1, 0.95):  # the second time after the first has been seen
        for view in views:
            view.mul_(factor)
        yield


def _storage(_: nn.Module, parameters: Parameters) -> None:
    for p in parameters.values():
        torch.empty(0, dtype=p.dtype).set_(p.untyped_storage()).mul_(1.05)


def _set(_: nn.Module, parameters: Parameters) -> None:
    for p in parameters.values():
        with torch.no_grad():
            p.set_((p * 0.95).detach())


def _replaced(model: nn.Module, parameters: Parameters) -> None:
    for name, p in parameters.items():
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(p.detach() * 1.05))


def _one_ulp(_: nn.Module, parameters: Parameters) -> None:
    for p in parameters.values():
        place = p.data.view(-1)[-1:]
        place.copy_(torch.nextafter(place, torch.tensor(9.0, dtype=place.dtype)))


def _permuted(_: nn.Module, parameters: Parameters) -> None:
    for p in parameters.values():
        p.data.copy_(p.data.roll(1, 0))  # the same numbers, at other places


def _swapped(_: nn.Module, parameters: Parameters) -> None:
    for p in parameters.values():
        p.data.view(-1)[:2] = p.data.view(-1)[:2].flip(0).clone()


def _flipped(_: nn.Module, parameters: Parameters) -> None:
    for name, p in parameters.items():
        if "oft_magnitude" not in name:  # below 0 it has no part at a strength
            p.data.view(-1)[0].neg_()


def _foreach(_: nn.Module, parameters: Parameters) -> None:
    with torch.no_grad():
        torch._foreach_mul_(list(parameters.values()), 1.05)


def _optimizer(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Write:
    def write(_: nn.Module, parameters: Parameters) -> Iterator[None]:
        optimizer = make(list(parameters.values()), lr=0.01, **options)
        for seed in (1, 2):
            generator = torch.Generator().manual_seed(seed)
            for p in parameters.values():
                p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            optimizer.step()
            yield
        optimizer.zero_grad()

    return write


def _zeroth_order(_: nn.Module, parameters: Parameters) -> Iterator[None]:
    generator = torch.Generator().manual_seed(3)
    directions = [torch.randn(p.shape, generator=generator).to(p.dtype) for p in parameters.values()]
    for step in (1e-3, -2e-3, 1e-3):
        for p, direction in zip(parameters.values(), directions, strict=True):
            p.data.add_(direction, alpha=step)
        yield


def _ema(model: nn.Module, parameters: Parameters) -> Iterator[None]:
    average = EMAModel(parameters.values(), decay=0.5)
    _data(model, parameters)
    average.step(parameters.values())
    average.store(parameters.values())
    average.copy_to(parameters.values())
    yield
    average.restore(parameters.values())
    yield


def _loaded(assign: bool) -> Write:
    def write(model: nn.Module, parameters: Parameters) -> None:
        model.load_state_dict({n: p.detach() * 0.95 for n, p in parameters.items()}, strict=False, assign=assign)

    return write


WRITES: dict[str, Write] = {
    "data": _data, "assigned": _assigned, "numpy": _numpy, "kept_view": _kept_view, "storage": _storage, "set": _set,
    "replaced": _replaced, "one_ulp": _one_ulp, "permuted": _permuted, "swapped": _swapped, "flipped": _flipped,
    "foreach": _foreach, "sgd": _optimizer(torch.optim.SGD, momentum=0.9),
    "adam_foreach": _optimizer(torch.optim.Adam, foreach=True),
    "adamw_fused": _optimizer(torch.optim.AdamW, fused=True), "zeroth_order": _zeroth_order, "ema": _ema,
    "loaded": _loaded(False), "loaded_assigned": _loaded(True),
}  # fmt: skip


def _copied(model: Any) -> Any:
    """A copy, which has no rotation yet, with its layers computed together as the model's are.

    A copy's layers compute each for itself, in products of another shape, whose sums may round differently: that
    would hide a change of one ulp.
    """
    copied = copy.deepcopy(model)
    layers = [module for module in copied.modules() if isinstance(module, OFTLayer)]
    for adapter in model.peft_config:
        group(rotation for layer in layers for rotation in layer.rotations(adapter).values())
        share_inputs(copied, adapter)
    return copied


def _some(case: Case, share: int) -> list[tuple[str, Write]]:
    """Every second, or third, write, other ones for the next case: a kind's two sides see all of them."""
    return list(WRITES.items())[CASES.index(case) % share :: share]


def _same_as_a_copy(model: Any, inputs: Inputs, gradient: bool, what: str, **options: Any) -> None:
    """The outputs, and the gradients, are those of a copy of ``model``, which has no rotation yet, bit for bit."""
    copied = _copied(model) if isinstance(model, PeftModel) else copy.deepcopy(model)
    with torch.no_grad():
        assert torch.equal(model(*inputs, **options), copied(*inputs, **options)), what
    if not gradient:
        return
    outputs = model(*inputs, **options), copied(*inputs, **options)
    assert torch.equal(*outputs), what
    found, wanted = (
        torch.autograd.grad(y.sum() + (y * y).sum(), _trained(m), allow_unused=True)
        for y, m in zip(outputs, (model, copied), strict=True)
    )
    for one, other in zip(found, wanted, strict=True):
        assert (one is None) == (other is None), what
        if one is not None and other is not None:
            # the products of one batch of several layers' gradients may be summed in another order than alone
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * other.abs().max().item(), msg=what)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in rotation_parameters(model).values() if p.requires_grad]


def _backward(model: Any, inputs: Inputs) -> None:
    model(*inputs).square().sum().backward()
    model.zero_grad()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_write_is_missed(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    # every write meets other states in other cases
    states = itertools.cycle(itertools.product((1.0, 0.5), (False, True), (False, True)))
    for _ in range(CASES.index(case) % 8):
        next(states)
    for (how, write), (strength, training, backward) in zip(_some(case, 2), states, strict=False):
        model.train(training)
        model.base_model.set_scale("default", strength)
        if backward:
            _backward(model, inputs)
        with torch.no_grad():
            before = model(*inputs)
        steps = write(model, rotation_parameters(model))
        for _ in (None,) if steps is None else steps:
            what = f"{how}, strength {strength}, training {training}, backward {backward}"
            _same_as_a_copy(model, inputs, backward, what)
        # A shared block or one ulp may change little, and a permuted row nothing.
        if how in ("data", "numpy", "flipped", "sgd", "loaded"):
            assert not torch.equal(model(*inputs), before), how


def _write_over_there(parameters: Parameters) -> None:
    _data(nn.Module(), parameters)


@pytest.mark.parametrize("case", cases("exact"), ids=str)
def test_a_write_by_another_process_is_seen(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    model.share_memory()
    before = model(*inputs).detach()
    process = mp.get_context("fork").Process(target=_write_over_there, args=(rotation_parameters(model),))
    process.start()
    process.join()
    assert process.exitcode == 0
    _same_as_a_copy(model, inputs, True, "another process")
    assert not torch.equal(model(*inputs), before)


@pytest.mark.parametrize("case", cases("exact"), ids=str)
def test_an_averaged_model_computes_with_its_averages(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    average: Any = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    for _ in range(2):
        _data(model, rotation_parameters(model))
        average.update_parameters(model)
        _same_as_a_copy(average, inputs, False, "averaged")
        _same_as_a_copy(model, inputs, False, "the model itself")


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(4))


TOGETHER = [(options, training, "") for options in OPTIONS for training in (False, True)]
PARTLY = [("exact", training, which) for training in (False, True) for which in ("q_proj", "k_proj")]


@pytest.mark.parametrize(("options", "training", "which"), TOGETHER + PARTLY)
def test_no_write_is_missed_by_layers_that_share_their_input(options: str, training: bool, which: str) -> None:
    model = projections(**OPTIONS[options]).train(training)
    for how, write in list(WRITES.items()) if which else list(WRITES.items())[training::2]:
        if training:
            _backward(model, (X,))
        model(X)
        steps = write(model, {n: p for n, p in rotation_parameters(model).items() if which in n})
        for _ in (None,) if steps is None else steps:
            if which:
                # The first call finds out that the rotations that it has put side by side are not all present ones:
                # a layer rotates for itself then, in a product of another shape. From the second on, bit for bit.
                with torch.no_grad():
                    within_rounding(model(X), _copied(model)(X), torch.float32, 8)
            _same_as_a_copy(model, (X,), training, how)


@pytest.mark.parametrize("grad", [False, True])
def test_a_write_between_two_layers_that_share_their_input_is_seen(grad: bool) -> None:
    model = projections().eval()
    base = model.base_model.model
    with torch.set_grad_enabled(grad):
        for how, write in WRITES.items():
            model(X)
            base.q_proj(X)  # has rotated the input for the others
            steps = write(model, {n: p for n, p in rotation_parameters(model).items() if "k_proj" in n})
            for _ in (None,) if steps is None else steps:
                fresh = _copied(model).base_model.model
                fresh.q_proj(X)
                assert torch.equal(base.k_proj(X), fresh.k_proj(X)), how
                assert torch.equal(base.v_proj(X), fresh.v_proj(X)), how
                base.q_proj(X)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_write_is_missed_by_mixed_batches(case: Case) -> None:
    model, inputs = two_alike(case), batched(case)
    names = (["default", "other", "__base__"] * 2)[: len(inputs[0])]
    try:
        with torch.no_grad():
            model(*inputs, adapter_names=names)
    except UnsupportedLayerError:
        assert one_set_of_weights(case) or case.kind.name == "attention_output"
        return
    for how, write in _some(case, 4):
        steps = write(model, rotation_parameters(model))
        for _ in (None,) if steps is None else steps:
            _same_as_a_copy(model, inputs, how in ("data", "ema"), how, adapter_names=names)


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_no_write_is_missed_by_compiled_code(case: Case) -> None:
    torch.compiler.reset()
    model, inputs = case.trained(), case.inputs()
    compiled = torch.compile(model.base_model.model, backend="eager")
    with torch.no_grad():
        compiled(*inputs)
        for how in ("data", "numpy", "kept_view", "storage", "one_ulp", "foreach", "adamw_fused", "loaded"):
            steps = WRITES[how](model, rotation_parameters(model))
            for _ in (None,) if steps is None else steps:
                copied = _copied(model)
                # The compiled code may take a product of its own, which adds up in another order.
                case.close(compiled(*inputs), copied(*inputs))
                assert torch.equal(model(*inputs), copied(*inputs)), how
    torch.compiler.reset()


def test_every_write_changes_its_parameter() -> None:
    """The writes themselves do what they are here for."""
    for how, write in WRITES.items():
        model = projections()
        before = snapshot(rotation_parameters(model))
        steps = write(model, rotation_parameters(model))
        for _ in () if steps is None else steps:
            if how != "ema":
                after = rotation_parameters(model)
                assert all(not torch.equal(after[name], old) for name, old in before.items()), how
        if steps is None:
            after = rotation_parameters(model)
            assert all(not torch.equal(after[name], old) for name, old in before.items()), how
