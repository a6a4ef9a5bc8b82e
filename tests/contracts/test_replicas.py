"""Replicas, copies and threads: what runs beside a model computes as the model does alone."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.base import OFTLayer
from tests.support.contract_cases import (
    Case,
    base_parameters,
    batched,
    cases,
    one_set_of_weights,
    plain_and_full,
    projections,
    rotation_parameters,
    same_bits,
    snapshot,
    two_alike,
)
from tests.support.contract_layers import Inputs

EVERY = plain_and_full()


def _replicas(model: nn.Module, count: int, detach: bool = False) -> list[Any]:
    """What ``torch.nn.parallel.replicate`` makes of ``model`` for ``count`` devices, here all the same processor."""

    def broadcast(tensors: list[Tensor], devices: list[Any], detach: bool = False) -> list[list[Tensor]]:
        # What torch does by one copy to each device: tensors that are no parameters, with a graph to the model's.
        if detach:
            return [[x.detach().clone() for x in tensors] for _ in devices]
        return [[x.view_as(x) if x.requires_grad else x.clone() for x in tensors] for _ in devices]

    parallel: Any = sys.modules["torch.nn.parallel.replicate"]  # the function of that name hides the module
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "_get_device_index", lambda device, optional: device)
        patch.setattr(parallel, "_broadcast_coalesced_reshape", broadcast)
        return parallel.replicate(model, list(range(count)), detach)


def _at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """The results of ``jobs``, which start together, each in a thread of its own."""
    gate, found, failed = threading.Barrier(len(jobs)), [None] * len(jobs), []

    def run(index: int) -> None:
        try:
            gate.wait()
            found[index] = jobs[index]()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return found


def _variants(inputs: Inputs, count: int) -> list[Inputs]:
    return [tuple(x * (1 + i / 4) if x.is_floating_point() else x for x in inputs) for i in range(count)]


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_a_replica_computes_what_the_model_does(case: Case) -> None:
    model, inputs = case.trained().base_model.model, case.inputs()
    wanted = model(*inputs)
    parameters = list(rotation_parameters(model).values())
    factor = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(5))
    gradients = torch.autograd.grad((wanted * factor).sum(), parameters)
    (replica,) = _replicas(model, 1)
    output = replica(*inputs)
    case.close(output.detach(), wanted.detach())
    for found, expected in zip(torch.autograd.grad((output * factor).sum(), parameters), gradients, strict=True):
        # the gradients of a replica's layers come one by one: sums in another order
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5 * expected.abs().max().item())
    with torch.no_grad():
        for p in parameters:
            p.data.mul_(0.5)
        changed = model(*inputs)
        for detach in (False, True):
            case.close(_replicas(model, 1, detach)[0](*inputs), changed)
        assert torch.equal(model(*inputs), changed)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_replicas_in_threads(case: Case) -> None:
    model, inputs = case.trained().base_model.model, _variants(case.inputs(), 3)
    with torch.no_grad():
        wanted = [model(*x) for x in inputs]
    fresh = case.trained().base_model.model  # nothing computed yet
    replicas = _replicas(fresh, len(inputs))

    def job(index: int) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with torch.no_grad():
                return [replicas[index](*inputs[index]) for _ in range(3)]

        return run

    for outputs, expected in zip(_at_once([job(i) for i in range(3)]), wanted, strict=True):
        for output in outputs:
            case.close(output, expected)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_threads_call_one_model(case: Case) -> None:
    inputs = _variants(case.inputs(), 3)
    serial = case.trained()
    wanted = [serial(*x).detach() for x in inputs]
    model = case.trained()

    def job(index: int) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            found = []
            for repeat in range(4):
                with torch.set_grad_enabled(repeat % 2 == 0):
                    found.append(model(*inputs[index]).detach())
            return found

        return run

    for outputs, expected in zip(_at_once([job(i) for i in range(3)]), wanted, strict=True):
        for output in outputs:
            # layers that are computed in one batch in one thread may be computed alone in another
            case.close(output, expected)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_copies_and_pickles_while_others_run(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    with torch.no_grad():
        wanted = case.trained()(*inputs)

    def calls() -> list[Tensor]:
        found = []
        with torch.no_grad():
            for _ in range(6):
                found.append(model(*inputs))
        return found

    def copies() -> list[Tensor]:
        with torch.no_grad():
            return [COPIES[how](model, case.trained)(*inputs) for how in COPIES]

    for outputs in _at_once([calls, copies, calls]):
        for output in outputs:
            case.close(output, wanted)


#: how -> a copy of a model, made with the help of another one like it
COPIES: dict[str, Callable[[Any, Callable[[], Any]], Any]] = {
    "deepcopy": lambda model, _: copy.deepcopy(model),
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model.base_model.model)),
    "state": lambda model, another: _loaded(another(), model.state_dict()),
}


def _loaded(model: Any, state: dict[str, Tensor]) -> Any:
    for p in model.parameters():
        p.data.zero_()
    model.load_state_dict(state)
    return model


class Gate:
    """Stops a call of a model in its middle, and starts such a call in the middle of a copy.

    As a hook it stops the call that :meth:`stop_a_call` has started. Being copied, or asked for a state, it does just
    that: what is copied after it is copied while the call stands still.
    """

    def __init__(self, call: Callable[[], Any] | None = None) -> None:
        self.call = call
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self, *_: Any) -> None:
        if threading.current_thread() is self.thread:
            self.inside.set()
            self.go_on.wait(0.3)  # a copy that waits for the end of the call goes on then

    def stop_a_call(self, *_: Any) -> None:
        """Start a call and wait until it stands still, or cannot because the copy keeps it from starting."""
        if self.call is not None and self.thread is None:
            self.thread = threading.Thread(target=self.call)
            self.thread.start()
            self.inside.wait(0.05)

    def __reduce__(self) -> Any:
        self.stop_a_call()
        return Gate, ()

    def end(self) -> None:
        """Let the call end."""
        self.go_on.set()
        if self.thread is not None:
            self.thread.join()


def _first(module: nn.Module, name: str, value: Any) -> None:
    """An attribute that is copied before all others."""
    module.__dict__ = {name: value, **module.__dict__}


def _copied_in_the_middle(how: str, case: Case, model: Any, gate: Gate, another: Callable[[], Any]) -> None:
    for layer in _layers(model):
        base = layer.get_base_layer()
        _first(base, "gate", gate)
        base.register_state_dict_pre_hook(gate.stop_a_call)
    wanted = model(*case.inputs()).detach()
    twin = COPIES[how](model, another)
    gate.end()
    assert gate.thread is not None
    case.close(twin(*case.inputs()).detach(), wanted)
    net = twin if how == "pickle" else twin.base_model.model
    same_bits(base_parameters(net), snapshot(base_parameters(model.base_model.model)))


def _layers(model: nn.Module) -> list[OFTLayer]:
    return [module for module in model.modules() if isinstance(module, OFTLayer)]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("case", [case for case in EVERY if case.side == "in"], ids=str)
def test_a_copy_in_the_middle_of_a_call_holds_what_is_stored(case: Case, how: str) -> None:
    model = case.trained()
    gate = Gate(lambda: model(*case.inputs()))
    for layer in _layers(model):
        # a base with a hook is called with other weights in the places of its own
        layer.get_base_layer().register_forward_pre_hook(gate)
    _copied_in_the_middle(how, case, model, gate, case.trained)


def _partly_merged(case: Case) -> Any:
    """A model with one adapter merged at half its strength, which it has no more, and another one active beside it."""
    model = two_alike(case)
    model.base_model.set_adapter(["default", "other"])
    model.base_model.set_scale("default", 0.5)
    model.merge_adapter(["default"])
    model.base_model.set_scale("default", 1.0)
    return model


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("case", [case for case in cases("exact") if case.side == "in"], ids=str)
def test_a_copy_in_the_middle_of_a_call_is_merged_as_the_model_is(case: Case, how: str) -> None:
    model = _partly_merged(case)
    gate = Gate(lambda: model(*case.inputs()))
    for layer in _layers(model):
        for rotation in layer.rotations("other").values():
            # its call finds the original weight in its place, and other strengths
            rotation.register_forward_pre_hook(gate)
    _copied_in_the_middle(how, case, model, gate, lambda: _partly_merged(case))


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_threads_with_adapters_of_their_own(case: Case) -> None:
    model, inputs = two_alike(case), batched(case)
    rows = len(inputs[0])
    choices = [(["default", "other", "__base__"] * 2)[start : start + rows] for start in range(3)]
    layer: Any = model.base_model.model.layer
    with torch.no_grad():
        try:
            serial = [layer(*inputs, adapter_names=names) for names in choices]
        except (UnsupportedLayerError, TypeError):
            # one set of weights for the whole batch; torch's encoder layer knows no adapter_names
            assert one_set_of_weights(case) or case.kind.name == "attention_output"
            return

    def job(names: list[str]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with torch.no_grad():
                return [layer(*inputs, adapter_names=names) for _ in range(4)]

        return run

    for outputs, expected in zip(_at_once([job(names) for names in choices]), serial, strict=True):
        for output in outputs:
            assert torch.equal(output, expected)


@pytest.mark.parametrize("grad", [False, True])
def test_threads_share_no_rotated_input(grad: bool) -> None:
    model = projections().eval()
    generator = torch.Generator().manual_seed(2)
    inputs = [torch.randn(5, 12, generator=generator) for _ in range(4)]
    wanted = [model(x).detach() for x in inputs]

    def job(x: Tensor) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with torch.set_grad_enabled(grad):
                return [model(x).detach() for _ in range(40)]

        return run

    for outputs, expected in zip(_at_once([job(x) for x in inputs]), wanted, strict=True):
        for output in outputs:
            # together or each for itself: products of another shape
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
