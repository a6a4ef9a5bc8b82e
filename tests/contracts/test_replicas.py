"""Replicas, copies and threads: what runs beside a model computes as the model does alone."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from contracts.cases import Case, cases, randomize, rotation_parameters
from contracts.layers import Inputs
from orthotune import OFTConfig, get_peft_model
from orthotune.errors import UnsupportedLayerError

EVERY = [c for c in cases("exact", "together") if (c.options == "exact") == (c.side == "in")] + [
    c for c in cases("together") if c.kind.sides == ("in",)
]

# The other kinds are called with other weights in their places, which a copy of that moment takes along.
COPIED = [c for c in EVERY if c.options == "exact" and len(c.kind.turns) == 1 and "target_parameters" not in c.config]


def _replica(model: nn.Module) -> Any:
    """What ``torch.nn.parallel.replicate`` makes of a model for another device: modules share, parameters are views."""
    modules = list(model.modules())
    replicas = {id(module): module._replicate_for_data_parallel() for module in modules}
    for module in modules:
        replica = replicas[id(module)]
        replica._former_parameters = {}
        for name, child in module._modules.items():
            if child is not None:
                setattr(replica, name, replicas[id(child)])
        for name, parameter in module._parameters.items():
            if parameter is None:
                replica._parameters[name] = None
            else:
                # as replicate does: a plain tensor with a graph to the model's parameter
                setattr(replica, name, parameter.view_as(parameter) if parameter.requires_grad else parameter)
                replica._former_parameters[name] = parameter
    return replicas[id(model)]


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
    replica = _replica(model)
    output = replica(*inputs)
    case.close(output.detach(), wanted.detach())
    for found, expected in zip(torch.autograd.grad((output * factor).sum(), parameters), gradients, strict=True):
        # the gradients of a replica's layers come one by one: sums in another order
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-5 * expected.abs().max().item())
    with torch.no_grad():
        for p in parameters:
            p.data.mul_(0.5)
        changed = model(*inputs)
        case.close(_replica(model)(*inputs), changed)
        assert torch.equal(model(*inputs), changed)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_replicas_in_threads(case: Case) -> None:
    model, inputs = case.trained().base_model.model, _variants(case.inputs(), 3)
    with torch.no_grad():
        wanted = [model(*x) for x in inputs]
    fresh = case.trained().base_model.model  # nothing computed yet
    replicas = [_replica(fresh) for _ in inputs]

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


@pytest.mark.parametrize("case", COPIED, ids=str)
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
            made = [copy.deepcopy(model)(*inputs)]
            made.append(pickle.loads(pickle.dumps(model.base_model.model))(*inputs))
        return made

    for outputs in _at_once([calls, copies, calls]):
        for output in outputs:
            case.close(output, wanted)


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_threads_with_adapters_of_their_own(case: Case) -> None:
    inputs = case.inputs()
    if case.kind.name in ("conv1d_same", "linear_rank1"):  # without a batch so far
        inputs = (inputs[0][None],)
    model = case.trained()
    model.add_adapter("other", OFTConfig(**case.config))
    randomize(model, seed=8, adapter="other").eval()
    rows = len(inputs[0])
    choices = [(["default", "other", "__base__"] * 2)[start : start + rows] for start in range(3)]
    layer: Any = model.base_model.model.layer
    with torch.no_grad():
        try:
            serial = [layer(*inputs, adapter_names=names) for names in choices]
        except (UnsupportedLayerError, TypeError):
            # one set of weights for the whole batch; torch's encoder layer knows no adapter_names
            assert any(word in case.kind.name for word in ("attention", "encoder", "experts", "parameter"))
            return

    def job(names: list[str]) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            with torch.no_grad():
                return [layer(*inputs, adapter_names=names) for _ in range(4)]

        return run

    for outputs, expected in zip(_at_once([job(names) for names in choices]), serial, strict=True):
        for output in outputs:
            assert torch.equal(output, expected)


class Projections(nn.Module):
    """Query, key and value of one input, which is rotated for all of them together."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(12, 20), nn.Linear(12, 8), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


@pytest.mark.parametrize("grad", [False, True])
def test_threads_share_no_rotated_input(grad: bool) -> None:
    torch.manual_seed(1)
    config = OFTConfig(oft_block_size=4, target_modules=["q_proj", "k_proj", "v_proj"])
    model = randomize(get_peft_model(Projections(), config)).eval()
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
