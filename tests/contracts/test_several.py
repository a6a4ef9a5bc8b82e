"""Several adapters on one layer: merging some of them, in any order, never changes what the model computes.

One of them may be a frozen map of the weight, as files of other tools bring it, beside rotations.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from peft import PeftModel

from orthotune import OFTConfig
from tests.support.contract_cases import (
    NAMES,
    Case,
    base_parameters,
    cases,
    frozen_turns,
    rotation_parameters,
    same_bits,
    several,
    snapshot,
)
from tests.support.contract_reference import run

pytestmark = pytest.mark.filterwarnings("ignore:Already following adapters", "ignore:All adapters are already merged")
# A case, and which of its adapters is a frozen map: the second one maps outputs and scales them, the third maps inputs.
# The other one of the two is a rotation then, and the first one rotates what the map does not.
CASES = [(case, "") for case in cases("exact")] + [
    (case, "second" if case.side == "in" else "third") for case in cases("exact") if frozen_turns(case)
]
# What both of them do on the side that the first one rotates, for each way that a frozen map is applied.
CASES += [
    (case, "third" if case.side == "in" else "second")
    for case in cases("exact")
    if case.kind.name in ("linear_rank3", "transposed_linear", "conv2d")
]
every_case = pytest.mark.parametrize(("case", "frozen"), CASES, ids=lambda part: str(part) or "rotations")


def _wanted(case: Case, model: PeftModel, configs: dict[str, Any], order: tuple[str, ...]) -> torch.Tensor:
    leaves = {name: p.detach().double() for name, p in rotation_parameters(model).items()}
    return run(case, model, case.inputs(), {name: configs[name] for name in order}, leaves)


@every_case
def test_merging_some_of_the_active_adapters_changes_no_output(case: Case, frozen: str) -> None:
    model, configs = several(case, frozen)
    inputs, before = case.inputs(), snapshot(base_parameters(model))
    orders = [o for count in (2, 3) for o in itertools.permutations(NAMES, count)]
    # every order and subset is met by a few kinds, every kind meets a few of them
    for index, order in enumerate(orders[CASES.index((case, frozen)) % 6 :: 6]):
        model.base_model.set_adapter(list(order))
        wanted = _wanted(case, model, configs, order)
        with torch.no_grad():
            turned = model(*inputs)
            case.close(turned, wanted)
            subsets = [*itertools.permutations(order, 1), *itertools.permutations(order, 2)]
            for subset in subsets[(CASES.index((case, frozen)) + index) % 3 :: 3]:
                for name in subset:  # one after another, in an order of its own
                    model.merge_adapter([name])
                    case.close(model(*inputs), wanted)
                with model.disable_adapter():
                    assert torch.equal(model(*inputs), case.base()(*inputs))
                same_bits(base_parameters(model), before)  # disabling has taken the merge out
                assert torch.equal(model(*inputs), turned)
                model.merge_adapter(list(subset))
                case.close(model(*inputs), wanted)
                model.unmerge_adapter()
                same_bits(base_parameters(model), before)
                assert torch.equal(model(*inputs), turned)


@every_case
def test_any_walk_of_merges_and_switches_computes_the_active_adapters(case: Case, frozen: str) -> None:
    model, configs = several(case, frozen)
    inputs, before = case.inputs(), snapshot(base_parameters(model))
    dice = random.Random(CASES.index((case, frozen)))
    merged: list[str] = []
    order: tuple[str, ...] = ("default",)
    known: dict[tuple[str, ...], torch.Tensor] = {}
    with torch.no_grad():
        for _ in range(10):
            step = dice.choice(["merge", "unmerge", "switch", "train", "disable"])
            if step == "merge":
                chosen = dice.sample(order, dice.randint(1, len(order)))
                model.merge_adapter(chosen)
                merged += [name for name in chosen if name not in merged]
            elif step == "unmerge":
                model.unmerge_adapter()
                merged = []
                same_bits(base_parameters(model), before)
            elif step == "switch" and not merged:  # what is merged stays, whatever is active
                order = tuple(dice.sample(NAMES, dice.randint(1, 3)))
                model.base_model.set_adapter(list(order))
            elif step == "disable":
                with model.disable_adapter():
                    assert torch.equal(model(*inputs), case.base()(*inputs))
                merged = []
            elif step == "train":
                model.train().eval()
            if order not in known:
                known[order] = _wanted(case, model, configs, order)
            case.close(model(*inputs), known[order])
        model.unmerge_adapter()
    same_bits(base_parameters(model), before)


@every_case
def test_one_is_trained_beside_another_that_is_merged(case: Case, frozen: str) -> None:
    model, configs = several(case, frozen)
    order = ("second", "default") if CASES.index((case, frozen)) % 2 else ("default", "second")
    model.base_model.set_adapter(list(order))
    inputs = case.inputs()
    leaves = {n: p.detach().double() for n, p in rotation_parameters(model).items()}
    own = {n: p for n, p in rotation_parameters(model).items() if ".default" in n}
    for name in own:
        leaves[name].requires_grad_()
    reference = run(case, model, inputs, {name: configs[name] for name in order}, leaves)
    factor = torch.randn(reference.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (reference * factor).sum().backward()
    model.merge_adapter(["second"])
    output = model(*inputs)
    case.close(output.detach(), reference.detach())
    found = torch.autograd.grad((output * factor.to(case.dtype)).sum(), list(own.values()))
    for (name, _), gradient in zip(own.items(), found, strict=True):
        wanted = leaves[name].grad
        assert wanted is not None
        # float32 outputs and their products against float64 throughout
        torch.testing.assert_close(
            gradient.double(), wanted, rtol=1e-3, atol=2e-5 * wanted.abs().max().item(), msg=name
        )
    # a step is seen through the merge
    with torch.no_grad():
        for (_, p), gradient in zip(own.items(), found, strict=True):
            p.sub_(gradient, alpha=0.01)
        case.close(model(*inputs), _wanted(case, model, configs, order))


@every_case
def test_adapters_at_strengths_of_their_own(case: Case, frozen: str) -> None:
    model, configs = several(case, frozen)
    order = ("default", "second")
    model.base_model.set_adapter(list(order))
    model.base_model.set_scale("default", 0.5)
    configs["default"] = configs["default"] | {"strength": 0.5}
    inputs, before = case.inputs(), snapshot(base_parameters(model))
    wanted = _wanted(case, model, configs, order)
    with torch.no_grad():
        case.close(model(*inputs), wanted)
        model.merge_adapter(["default"])
        case.close(model(*inputs), wanted)
        # what is merged stays as it was merged; the other one follows
        model.base_model.set_scale("default", 1.0)
        model.base_model.set_scale("second", 0.5)
        configs["second"] = configs["second"] | {"strength": 0.5}
        case.close(model(*inputs), _wanted(case, model, configs, order))
        model.unmerge_adapter()
        configs["default"] = configs["default"] | {"strength": 1.0}
        case.close(model(*inputs), _wanted(case, model, configs, order))
    same_bits(base_parameters(model), before)


@pytest.mark.parametrize("case", [case for case in cases("exact") if len(case.kind.turns) == 1], ids=str)
def test_one_alone_is_what_it_is_without_the_others(case: Case) -> None:
    model, configs = several(case)
    with torch.no_grad():
        for name in NAMES:
            model.set_adapter(name)
            found = model(*case.inputs())
            fresh = case.fresh()
            fresh.add_adapter("alone", OFTConfig(**configs[name]))
            fresh.set_adapter("alone")
            state = {
                n.replace(f".{name}", ".alone"): p for n, p in rotation_parameters(model).items() if f".{name}" in n
            }
            fresh.load_state_dict(state, strict=False)
            # a batch of the rotations of other shapes rounds alike: each block is computed for itself
            case.close(found, fresh.eval()(*case.inputs()), roundings=2)
