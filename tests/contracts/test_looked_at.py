"""What others see of an adapted layer: the weights that it computes with, and everything else as the base has it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from orthotune.errors import OrthotuneError
from orthotune.layers.base import OFTLayer
from tests.support.contract_cases import Case, base_parameters, cases, rotation_parameters, same_bits, snapshot

EVERY = [case for case in cases("exact", "together") if case.options == "exact" or case.side == case.kind.sides[-1]]
DTYPES = cases("exact", dtypes=(torch.float64,)) + cases("together", dtypes=(torch.bfloat16,))
PLAIN = cases("exact")


def _names(case: Case) -> list[str]:
    """The base parameters that rotate, by their names in the model without adapters."""
    return list(dict.fromkeys(turn.parameter for turn in case.kind.turns))


def _seen(case: Case, model: nn.Module) -> dict[str, Tensor]:
    """Every weight as code reads it that does not know of adapters."""
    net = model.base_model.model
    return {name: reduce(getattr, name.split("."), net) for name in _names(case)}


def _merged(case: Case) -> dict[str, Tensor]:
    merged = dict(case.trained().merge_and_unload().named_parameters())
    return {name: merged[name] for name in _names(case)}


def _weights_close(case: Case, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        # Two rotations and a scale, each rounded in float32, in other orders of addition; then one rounding to the
        # base's dtype on both sides.
        case.close(weight.detach(), expected[name].detach(), roundings=4)


def _gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    parameters = rotation_parameters(model)
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def _gradients_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, wanted in expected.items():
        # Sums of float32 products in another order, through a few layers at most.
        torch.testing.assert_close(found[name], wanted, rtol=1e-3, atol=2e-5 * wanted.abs().max().item(), msg=name)


def _like(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.randn(W.shape, generator=generator).to(W.dtype) for name, W in weights.items()}


def _sum(weights: dict[str, Tensor]) -> Tensor:
    """A number that depends on every entry of every weight, not on their norms alone."""
    return sum((weights[name] * factor).sum() for name, factor in _like(weights).items())  # type: ignore[return-value]


@pytest.mark.parametrize("case", EVERY + DTYPES, ids=str)
def test_a_weight_that_is_read_is_the_merged_one(case: Case) -> None:
    model, expected = case.trained(), _merged(case)
    _weights_close(case, _seen(case, model), expected)
    _weights_close(case, _seen(case, model.train()), expected)
    with torch.no_grad():
        _weights_close(case, _seen(case, model), expected)
    with torch.inference_mode():
        _weights_close(case, _seen(case, model), expected)
    with torch.autocast("cpu", torch.bfloat16):
        seen = _seen(case, model)
    _weights_close(case, seen, expected)
    _weights_close(case, _seen(case, model), expected)
    moved = dict(case.base().named_parameters())
    for name, W in expected.items():
        # The comparison means something only if the adapter moves the weight far more than rounding does.
        assert (W - moved[name]).abs().max() > 0.05 * W.abs().max(), name


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_the_base_called_with_the_weights_that_are_read_gives_the_same_output_and_gradients(case: Case) -> None:
    # The base's own functions: linear, convolutions, embedding, multi_head_attention_forward, einsum, matmul.
    model, inputs = case.trained(), case.inputs()
    output = model(*inputs)
    factor = torch.randn(output.shape, generator=torch.Generator().manual_seed(6))
    expected = _gradients(model, (output * factor).sum())
    base = case.base()
    again = functional_call(base, _seen(case, model), inputs)
    case.close(again.detach(), output.detach())
    _gradients_close(_gradients(model, (again * factor).sum()), expected)
    with torch.no_grad():
        case.close(functional_call(base, _seen(case, model), inputs), output.detach())
    with torch.inference_mode():
        case.close(functional_call(base, _seen(case, model), inputs), output.detach())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        merged = functional_call(base, _merged(case), inputs)
        # The same functions on the same weights: what rounded differently in float32 may fall to another bfloat16.
        found = functional_call(base, _seen(case, model), inputs)
        error, limit = (found.float() - merged.float()).abs().max(), 2**-6 * merged.float().abs().max()
        assert error <= limit


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_what_a_weight_is_like_is_known_without_computing_a_rotation(case: Case) -> None:
    model, base = case.trained(), dict(case.base().named_parameters())
    computed: list[str] = []
    for name in rotation_parameters(model):
        if "oft_magnitude" not in name:
            rotation = model.get_submodule(name.rpartition(".")[0])
            rotation.register_forward_hook(lambda *_, name=name: computed.append(name))
    for name, W in _seen(case, model).items():
        like = base[name]
        assert isinstance(W, Tensor)
        assert (W.shape, W.dtype, W.device, W.layout) == (like.shape, like.dtype, like.device, like.layout)
        assert (W.dim(), W.numel(), W.is_floating_point(), len(W)) == (like.dim(), like.numel(), True, len(like))
        assert W.stride() == like.stride() and W.element_size() == like.element_size()
        assert W.requires_grad
        with torch.no_grad():
            assert not _seen(case, model)[name].requires_grad
        repr(W.shape)
    assert not computed
    _sum(_seen(case, model))
    # and when they are used, each is computed, for its own weight
    assert set(computed) == {name for name in rotation_parameters(model) if "oft_magnitude" not in name}


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "add_": lambda W: W.add_(1),
    "copy_": lambda W: W.copy_(torch.zeros(W.shape)),
    "zero": lambda W: nn.init.zeros_(W),
    "item": lambda W: W.__setitem__(0, 0.0),
    "column": lambda W: W.__setitem__((..., 0), 0.0),
    "view": lambda W: W.view(-1).mul_(2),
    "row": lambda W: W[1].add_(1),
    "transposed": lambda W: W.mT.mul_(2),
    "data": lambda W: W.data.add_(1),
    "detached": lambda W: W.detach().add_(1),
    "out": lambda W: torch.add(torch.zeros(W.shape), 1, out=W),
    "foreach": lambda W: torch._foreach_add_([W], 1.0),
}


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_a_write_into_a_weight_that_is_read_is_refused_in_words(case: Case) -> None:
    model = case.trained()
    with torch.no_grad():
        before, output = snapshot(dict(model.named_parameters())), model(*case.inputs())
        for name in _names(case):
            for how, write in WRITES.items():
                if how == "view" and not _seen(case, model)[name].is_contiguous():
                    continue
                with pytest.raises(OrthotuneError, match="a write into the weight of adapted layer"):
                    write(_seen(case, model)[name])
                    pytest.fail(f"{how} was not refused")
        same_bits(dict(model.named_parameters()), before)
        assert torch.equal(model(*case.inputs()), output)


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_a_copy_of_a_weight_that_is_read_holds_its_numbers(case: Case) -> None:
    model, expected = case.trained(), _merged(case)

    def saved(W: Tensor) -> Tensor:
        file = io.BytesIO()
        torch.save({"weight": W}, file)
        file.seek(0)
        return torch.load(file)["weight"]

    copies: list[Callable[[Tensor], Tensor]] = [
        copy.deepcopy, lambda W: pickle.loads(pickle.dumps(W)), saved, lambda W: W.detach().clone(),
        lambda W: torch.from_numpy(W.detach().numpy().copy()), lambda W: torch.tensor(W.tolist()),
        lambda W: W.to(torch.float64).float(), lambda W: torch.from_numpy(np.array(W.detach())),
    ]  # fmt: skip
    for one in copies:
        found = {name: one(W) for name, W in _seen(case, model).items()}
        assert all(type(W) is Tensor or type(W) is nn.Parameter for W in found.values())
        _weights_close(case, found, expected)


class _Squared(torch.autograd.Function):
    """A kernel of somebody else, which saves the weight for its backward."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(W, factor)
        return (W * W * factor).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        W, factor = ctx.saved_tensors
        return 2 * grad * W * factor, None


class _Reads(nn.Module):
    """A model that uses the weights past their layers."""

    def __init__(self, case: Case, model: nn.Module) -> None:
        super().__init__()
        self.case, self.model = case, model

    def forward(self) -> Tensor:
        return _sum(_seen(self.case, self.model))


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_gradients_arrive_through_custom_functions_and_transforms(case: Case) -> None:
    model = case.trained()
    seen = _seen(case, model)
    expected = _gradients(model, sum((W * W * f).sum() for (W, f) in _pairs(seen)))  # type: ignore[arg-type]
    found = _gradients(model, sum(_Squared.apply(W, f) for (W, f) in _pairs(_seen(case, model))))  # type: ignore[arg-type]
    _gradients_close(found, expected)

    expected = _gradients(model, _sum(_seen(case, model)))
    parameters = {"model." + name: p.detach() for name, p in rotation_parameters(model).items()}
    moved = torch.func.grad(lambda p: functional_call(_Reads(case, model), p))(parameters)
    _gradients_close({name.removeprefix("model."): g for name, g in moved.items()}, expected)
    # twice: the gradient of a squared gradient
    once = torch.autograd.grad(_sum(_seen(case, model)), list(rotation_parameters(model).values()), create_graph=True)
    twice = _gradients(model, sum(g.square().sum() for g in once))  # type: ignore[arg-type]
    assert all(g.isfinite().all() for g in twice.values())
    _weights_close(case, _seen(case, model), _merged(case))


def _pairs(seen: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    factors = _like(seen)
    return [(W, factors[name]) for name, W in seen.items()]


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_disabled_and_merged_the_bases_own_parameter_is_read(case: Case) -> None:
    model = case.trained()
    own = {id(p) for p in base_parameters(model).values()}
    with model.disable_adapter():
        assert all(id(W) in own for W in _seen(case, model).values())
        assert all(torch.equal(W, dict(case.base().named_parameters())[n]) for n, W in _seen(case, model).items())
    _weights_close(case, _seen(case, model), _merged(case))
    model.merge_adapter()
    held = {id(p) for p in base_parameters(model).values()}
    assert all(id(W) in held for W in _seen(case, model).values())
    _weights_close(case, _seen(case, model), _merged(case))
    model.unmerge_adapter()
    _weights_close(case, _seen(case, model), _merged(case))


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_every_public_attribute_of_the_base_is_there(case: Case) -> None:
    model = case.trained()
    compared = 0
    for layer in model.modules():
        if not isinstance(layer, OFTLayer):
            continue
        base = layer.get_base_layer()
        for name in dir(base):
            if name.startswith("_") or name in dir(nn.Module) or name in ("training", "weight"):
                continue
            value = getattr(base, name)
            assert hasattr(layer, name), name
            found = getattr(layer, name)
            if isinstance(value, int | float | str | tuple | list | None | torch.dtype | torch.device):
                assert found == value, name
                compared += 1
            elif isinstance(value, Tensor):
                assert found.shape == value.shape, name
                compared += 1
        assert not hasattr(layer, "no_such_attribute")
    if case.kind.name not in ("experts", "experts_input_first", "parameter"):  # which have their parameter alone
        assert compared >= 2
