"""The rotation is computed once for each version of its parameter, and never served stale."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint

from orthotune.kernels.from_parameters import rotation_of
from orthotune.kernels.rotate import rotate
from orthotune.layers import parametrization
from orthotune.layers.parametrization.rotation import Rotation, rotated_now
from orthotune.rotation.blocks import BlockLayout
from orthotune.rotation.spec import RotationSpec
from tests.support.layer_models import linear, rotations


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rotations computed, in ``count[0]``."""
    calls = [0]

    def counted(spec: RotationSpec, v: torch.Tensor, known: torch.Tensor | None = None) -> torch.Tensor:
        calls[0] += known is None
        return rotation_of(spec, v, known)

    monkeypatch.setattr(parametrization.rotation, "rotation_of", counted)
    return calls


X = torch.randn(3, 12, generator=torch.Generator().manual_seed(0))


def test_once_for_many_calls_without_gradient(count: list[int]) -> None:
    model = linear()
    with torch.no_grad():
        outputs = [model(X) for _ in range(5)]
    assert count == [1]
    assert all(torch.equal(y, outputs[0]) for y in outputs)
    with torch.inference_mode():
        assert torch.equal(model(X), outputs[0])
    assert count == [1]


def test_once_for_a_frozen_adapter_with_gradient_on(count: list[int]) -> None:
    model = linear(inference_mode=True)
    x = X.clone().requires_grad_()
    for _ in range(4):
        model(x).sum().backward()
    assert count == [1]


def test_once_for_the_micro_steps_of_one_optimizer_step(count: list[int]) -> None:
    model = linear().train()
    parameter = rotations(model)[0].weight
    for _ in range(3):
        model(X).square().sum().backward()
    assert count == [1]
    accumulated, parameter.grad = parameter.grad, None
    model(X).square().sum().backward()
    # three equal gradients, summed in float32
    torch.testing.assert_close(accumulated, 3 * parameter.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_once_for_a_forward_and_its_recomputation(count: list[int], reentrant: bool) -> None:
    model = linear().train()
    parameter = rotations(model)[0].weight
    model(X).square().sum().backward()
    expected, parameter.grad, count[0] = parameter.grad, None, 0
    rotations(model)[0].memo.drop("test")
    x = X.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).square().sum().backward()
    assert count == [1]
    assert torch.equal(parameter.grad, expected)


def test_a_series_is_computed_for_each_gradient(count: list[int]) -> None:
    model = linear(use_cayley_neumann=True).train()
    for _ in range(3):
        model(X).sum().backward()
    assert count == [3]


def _step(model: Any) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()


def _fused_step(model: Any) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1, fused=True)
    model(X).square().sum().backward()
    optimizer.step()


def _load(model: Any) -> None:
    state = {k: v + 0.3 if "oft_" in k else v for k, v in model.state_dict().items()}
    model.load_state_dict(state)


def _assign(model: Any) -> None:
    state = {k: v + 0.3 if "oft_" in k else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def _write(model: Any) -> None:
    with torch.no_grad():
        rotations(model)[0].weight.mul_(2)


def _data_and_mode(model: Any) -> None:
    rotations(model)[0].weight.data.mul_(2)
    model.train().eval()


def _data_and_place(model: Any) -> None:
    rotations(model)[0].weight.data.mul_(2)
    model.to("cpu")


def _data_after_a_backward(model: Any) -> None:
    model(X).square().sum().backward()  # as an optimizer does that is written against .data
    parameter = rotations(model)[0].weight
    parameter.data.sub_(0.1 * parameter.grad)


CHANGES: dict[str, Callable[[Any], None]] = {
    "optimizer step": _step,
    "fused optimizer step": _fused_step,
    "load_state_dict": _load,
    "load_state_dict(assign)": _assign,
    "write in place": _write,
    "write through data after a backward": _data_after_a_backward,
    "write through data and train": _data_and_mode,
    "write through data and to": _data_and_place,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(change: str, count: list[int]) -> None:
    model = linear()
    with torch.no_grad():
        before = model(X)
    CHANGES[change](model)
    calls = count[0]
    with torch.no_grad():
        after = model(X)
        model(X)
    assert count[0] == calls + 1
    assert (after - before).abs().max() > 1e-3
    # what is served is what the parameter says
    (rotation,) = rotations(model)
    expected = X @ torch.block_diag(*rotation_of(rotation.spec, rotation.weight.detach()))
    base = model.base_model.model.layer.base_layer
    torch.testing.assert_close(after, base(expected).detach(), rtol=0, atol=1e-5)  # float32, 12 products


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_is_seen(dtype: torch.dtype) -> None:
    model = linear()
    (rotation,) = rotations(model)
    with torch.no_grad():
        first = rotation()
        model.to(dtype)
        assert rotation().dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert (rotation() - first).abs().max() < 1e-2
        assert torch.equal(rotation(), rotation_of(rotation.spec, rotation.weight))


def test_inference_first_and_training_after() -> None:
    model = linear()
    with torch.inference_mode():
        first = model(X)
    assert not rotations(model)[0]().is_inference()
    model.train()
    x = X.clone().requires_grad_()
    y = model(x)
    y.sum().backward()
    assert torch.equal(y.detach(), first)
    # frozen rotations are served from the cache into a graph
    model.requires_grad_(False).eval()
    with torch.inference_mode():
        model(X)
    model(x).sum().backward()


def test_a_parameter_made_in_inference_mode_works() -> None:
    with torch.inference_mode():
        model = linear()
        before = model(X)
        rotations(model)[0].weight.mul_(2)
        assert (model(X) - before).abs().max() > 1e-3


@pytest.mark.parametrize("grad", [True, False])
def test_dropped_blocks_are_never_cached(grad: bool) -> None:
    model = linear(module_dropout=0.5).train()
    with torch.set_grad_enabled(grad):
        outputs = {tuple(model(X)[0].tolist()) for _ in range(12)}
        assert len(outputs) > 1
        model.eval()
        assert len({tuple(model(X)[0].tolist()) for _ in range(4)}) == 1


def test_coft_writes_the_projection_in_training_and_never_in_evaluation() -> None:
    model = linear(coft=True, eps=0.3)
    (rotation,) = rotations(model)
    stored = rotation.weight.detach().clone()
    evaluated = model(X)
    with torch.no_grad():
        model(X)
        model.train()(X)
        model.eval().merge_adapter()
        model.unmerge_adapter()
    assert torch.equal(rotation.weight, stored)
    trained = model.train()(X)
    assert not torch.equal(rotation.weight, stored)
    assert torch.equal(rotation.weight, rotation.spec.within_ball(stored))
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=1e-5)


def test_coft_allows_a_module_to_be_used_twice_in_one_forward() -> None:
    model = linear(base=torch.nn.Linear(12, 12), coft=True, eps=0.3).train()
    model(model(X)).sum().backward()  # two uses
    twice = rotations(model)[0].weight.grad.clone()
    model.zero_grad()
    model(model(X)).sum().backward()  # nothing left to project
    torch.testing.assert_close(rotations(model)[0].weight.grad, twice, rtol=1e-5, atol=1e-6)


def test_representation_says_the_layout() -> None:
    assert "blocks=3x4, shared=True" in repr(Rotation(BlockLayout(4, 3, shared=True), RotationSpec(block_size=4)))


@pytest.mark.parametrize("way", ["series", "compiled"])
def test_training_that_fills_no_cache_still_makes_an_older_one_doubtful(way: str) -> None:
    """An evaluation, a step whose write leaves no version (fused, or through .data), and an evaluation again."""
    model = linear(use_cayley_neumann=way == "series").eval()
    with torch.no_grad():
        before = model(X)
    training = torch.compile(model, backend="eager") if way == "compiled" else model
    training(X).square().sum().backward()  # still in evaluation mode: nothing else clears the cache
    parameter = rotations(model)[0].weight
    parameter.data.sub_(0.1 * parameter.grad)
    with torch.no_grad():
        after = model(X)
    rotations(model)[0].memo.drop("test")
    with torch.no_grad():
        assert torch.equal(after, model(X))
    assert not torch.equal(after, before)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 12), (3, 12), (12,), (0, 12)])
def test_the_operation_of_compiled_code_rotates_by_the_parameter_of_now(
    shape: tuple[int, ...], dtype: torch.dtype, shared: bool
) -> None:
    rotation = Rotation(BlockLayout(4, 3, shared=shared), RotationSpec(block_size=4)).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    arguments = (x, rotation.weight.detach(), rotation.number)
    with torch.no_grad():
        for angle in (0.0, 0.5):  # a parameter that has changed is seen
            rotation.weight.data.fill_(angle)
            y = rotated_now(*arguments)
            assert y.dtype == dtype and torch.equal(y, rotate(x, rotation()))
            assert not y.numel() or y.data_ptr() != x.data_ptr()
        # What compilers assume of the operation: its schema, its fake and that it writes into no argument.
        assert set(torch.library.opcheck(torch.ops.orthotune.rotated.default, arguments).values()) == {"SUCCESS"}
