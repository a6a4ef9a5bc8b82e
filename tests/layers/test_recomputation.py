"""Activation checkpointing that repeats a forward under other adapters is found out."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable

import pytest
import torch
from peft import PeftModel
from torch.utils.checkpoint import checkpoint

from orthotune import OFTConfig
from orthotune.errors import OrthotuneError
from tests.support.contract_cases import Case, cases, randomize

CASES = cases("exact")


def _two(case: Case) -> PeftModel:
    model = case.trained().train()
    model.add_adapter("other", OFTConfig(**case.config))
    return randomize(model, seed=8, adapter="other")


SWITCHES: dict[str, Callable[[PeftModel], object]] = {
    "another adapter": lambda model: model.set_adapter("other"),
    "none": lambda model: model.base_model.disable_adapter_layers(),
    "a strength": lambda model: model.base_model.set_scale("default", 0.5),
    "a merge": lambda model: model.merge_adapter(),
}


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_switch_between_both_runs_is_refused(case: Case, switch: str) -> None:
    model, inputs = _two(case), case.inputs()
    inputs = tuple(x.requires_grad_() if x.is_floating_point() else x for x in inputs)
    loss = checkpoint(model, *inputs, use_reentrant=False).sum()
    SWITCHES[switch](model)
    with pytest.raises(OrthotuneError, match="activation checkpointing of layer '.*under default"):
        loss.backward()


# A reentrant checkpoint of tokens alone has no gradient, whatever is inside.
@pytest.mark.parametrize(
    ("case", "reentrant"),
    [(case, way) for case in CASES for way in (False, True) if not way or case.kind.name != "embedding"],
    ids=str,
)
def test_a_switch_that_is_taken_back_is_allowed(case: Case, reentrant: bool) -> None:
    """As preference training does: the policy's forward, the reference's without a gradient, then the backward."""
    model, inputs = _two(case), case.inputs()
    inputs = tuple(x.requires_grad_() if x.is_floating_point() else x for x in inputs)
    trained = [p for p in model.parameters() if p.requires_grad]
    model(*inputs).sum().backward()
    expected = [p.grad.clone() for p in trained]
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss = checkpoint(model, *inputs, use_reentrant=reentrant).sum()
        with torch.no_grad(), model.disable_adapter():
            model(*inputs)
        loss.backward()
    for parameter, grad in zip(trained, expected, strict=True):
        # the same numbers in another order of kernels: float32
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-6)


def test_a_reentrant_repetition_under_adapters_that_no_forward_had_is_warned_about() -> None:
    case = CASES[1]
    model, (x,) = _two(case), case.inputs()
    loss = checkpoint(model, x.requires_grad_(), use_reentrant=True).sum()
    model.set_adapter("other")
    with pytest.warns(UserWarning, match="run again in a backward under other; its forwards ran under default"):
        loss.backward()


def test_what_was_noted_is_not_copied() -> None:
    case = CASES[1]
    model, (x,) = _two(case), case.inputs()
    checkpoint(model, x.requires_grad_(), use_reentrant=False).sum().backward()
    assert pickle.loads(pickle.dumps(model))(x).requires_grad
