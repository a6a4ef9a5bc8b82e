"""No rows, no tokens, and inputs without a batch: the shapes, values and gradients of the merged module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.support.contract_cases import Case, cases, rotation_parameters
from tests.support.contract_layers import Inputs

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


_pairs: dict[str, tuple[nn.Module, nn.Module]] = {}


def _pair(case: Case) -> tuple[nn.Module, nn.Module]:
    """The merged module, whose weights ask for gradients, and the adapted one; built once for each case."""
    if str(case) not in _pairs:
        _pairs[str(case)] = (case.trained().merge_and_unload().requires_grad_(True), case.trained())
    for model in _pairs[str(case)]:
        model.zero_grad()
    return _pairs[str(case)]


def _run(model: nn.Module, inputs: Inputs) -> tuple[Tensor, Inputs]:
    leaves = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs)
    return model(*leaves), leaves


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_and_gradients_are_those_of_the_merged_module(case: Case, size: str) -> None:
    inputs = _sized(case, size)
    if inputs is None:
        return
    merged, model = _pair(case)
    try:
        expected, theirs = _run(merged.eval(), inputs)
    except (RuntimeError, ValueError, AssertionError, IndexError, NotImplementedError):
        return  # the base refuses such inputs itself
    with torch.no_grad():
        outputs = [model.eval()(*inputs)]
    found, ours = _run(model.train(), inputs)
    for output in (*outputs, found):
        assert output.shape == expected.shape and output.dtype == expected.dtype
        if expected.numel():
            case.close(output.detach(), expected.detach())
    if not expected.requires_grad:
        return
    expected.sum().backward()
    assert found.requires_grad
    found.sum().backward()
    for own, other in zip(ours, theirs, strict=True):
        assert (own.grad is None) == (other.grad is None)
        if other.grad is not None and other.grad.numel():
            # two backward chains of the case's kind, each as long as its forward
            case.close(own.grad, other.grad, roundings=16)
    if any(merged.get_parameter(turn.parameter).grad is None for turn in case.kind.turns):
        return  # the base's own graph does not reach its weight
    gradients = [parameter.grad for parameter in rotation_parameters(model).values()]
    assert all(gradient is not None for gradient in gradients)
    if not expected.numel():
        assert not any(gradient.any() for gradient in gradients)
