"""No rows, no tokens, and inputs without a batch: the shapes, values and gradients of the merged module."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from contracts.cases import Case, cases, rotation_parameters
from contracts.layers import Inputs

#: kind -> the axis of tokens; kinds that are not here have a batch alone
TOKENS = {"linear_rank3": 1, "linear_rank4": 1, "transposed_linear": 1, "embedding": 1, "attention": 0,
          "attention_batch_first": 1, "attention_separate": 1, "attention_output": 0, "encoder_layer": 1}  # fmt: skip
#: kind -> the axis of the batch, where it is not the first
BATCH = {"attention": 1, "attention_output": 1}
SIZES = ("no_rows", "no_tokens", "unbatched")
CASES = [case for case in cases("exact", "magnitude") if case.options == "exact" or case.side == "in"]


def _sized(case: Case, size: str) -> Inputs | None:
    """The case's inputs cut to ``size``; None where the kind has none such."""
    inputs, name = case.inputs(), case.kind.name
    batch, tokens = BATCH.get(name, 0), TOKENS.get(name)
    if name.startswith(("mixtral", "gpt_oss")):
        return tuple(x[:0] for x in inputs) if size == "no_rows" else None
    if size == "no_rows":
        return None if name == "linear_rank1" else tuple(x.narrow(batch, 0, 0) for x in inputs)
    if size == "no_tokens":
        return None if tokens is None else tuple(x.narrow(tokens, 0, 0) for x in inputs)
    return None if name == "linear_rank1" or name == "encoder_layer" else tuple(x.select(batch, 0) for x in inputs)


def _merged(case: Case) -> nn.Module:
    return case.trained().merge_and_unload()


def _expected(case: Case, inputs: Inputs) -> Tensor | None:
    """What the merged module gives; None where it refuses such inputs itself."""
    try:
        return _merged(case)(*inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError, NotImplementedError):
        return None


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_those_of_the_merged_module(case: Case, size: str, training: bool) -> None:
    inputs = _sized(case, size)
    expected = None if inputs is None else _expected(case, inputs)
    if inputs is None or expected is None:
        return
    found = case.trained().train(training)(*inputs)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    if expected.numel():
        case.close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_zeros_where_the_base_has_zeros(case: Case, size: str) -> None:
    inputs = _sized(case, size)
    if inputs is None or _expected(case, inputs) is None:
        return
    base, model = _merged(case).requires_grad_(True).train(), case.trained().train()
    plain = base(*inputs)
    if not plain.requires_grad:
        return
    plain.sum().backward()
    turned = [base.get_parameter(turn.parameter).grad for turn in case.kind.turns]
    found = model(*inputs)
    assert found.requires_grad
    found.sum().backward()
    own = rotation_parameters(model)
    if any(gradient is None for gradient in turned):
        return  # the base's own graph does not reach its weight
    assert all(parameter.grad is not None for parameter in own.values())
    if not plain.numel():
        assert not any(parameter.grad.any() for parameter in own.values() if parameter.grad is not None)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_reach_the_inputs(case: Case, size: str) -> None:
    inputs = _sized(case, size)
    if inputs is None or not inputs[0].is_floating_point() or _expected(case, inputs) is None:
        return
    pairs = []
    for model in (_merged(case), case.trained()):
        leaves = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
        found = model(*leaves)
        if not pairs and not found.requires_grad:
            return  # no input reaches the base's output
        found.sum().backward()
        pairs.append([x.grad for x in leaves])
    for expected, own in zip(*pairs, strict=True):
        assert (own is None) == (expected is None)
        if expected is not None and expected.numel():
            # two backward chains of the case's kind, each as long as its forward
            case.close(own, expected, roundings=16)
