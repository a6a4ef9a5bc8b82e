"""The first training step tells which adapters got no gradient, and why."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

from orthotune import OFTConfig, get_peft_model


class Residual(nn.Module):
    """Two branches added to their input: a branch without a gradient does not make the loss undifferentiable."""

    def __init__(self, cut: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.cut = nn.Linear(8, 8), nn.Linear(8, 8), cut

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        b = torch.zeros_like(x) if self.cut == "not run" else self.b(x)
        b = b.detach() if self.cut == "graph" else b * 0 if self.cut == "zero" else b
        return {"y": x + self.a(x) + b}


def _model(cut: str = "") -> nn.Module:
    return get_peft_model(Residual(cut), OFTConfig(oft_block_size=4, target_modules=["a", "b"])).train()


def _step(model: nn.Module) -> None:
    model(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)))["y"].square().sum().backward()


@pytest.mark.parametrize(
    ("cut", "why"),
    [("not run", "took no part"), ("graph", "no gradient came"), ("zero", "zero everywhere")],
)
def test_the_layer_and_the_reason_are_named(cut: str, why: str) -> None:
    with pytest.warns(UserWarning, match=rf"1 of 2 adapted layers got no gradient .*: b\. Because .*{why}"):
        _step(_model(cut))


@pytest.fixture
def _strict() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.usefixtures("_strict")
def test_nothing_is_said_when_all_learn_and_no_hook_stays() -> None:
    model = _model()
    with torch.no_grad():
        model(torch.randn(3, 8))
    _step(model)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    _step(model)


def test_an_unloaded_model_has_no_hook() -> None:
    for unload in ("unload", "merge_and_unload"):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in getattr(_model(), unload)().modules())


@pytest.mark.usefixtures("_strict")
def test_it_watches_the_first_step_only() -> None:
    model = _model()
    _step(model)
    model.base_model.model.cut = "graph"
    _step(model)


@pytest.mark.usefixtures("_strict")
def test_a_forward_without_a_backward_is_no_step() -> None:
    model = _model("not run")
    model(torch.randn(3, 8))
    model.base_model.model.cut = ""
    _step(model)


@pytest.mark.usefixtures("_strict")
def test_disabled_and_inactive_adapters_are_not_asked_for() -> None:
    model = _model("graph")
    model.add_adapter("second", OFTConfig(oft_block_size=4, target_modules=["a"]))
    model.set_adapter("second")
    _step(model)


@pytest.mark.usefixtures("_strict")
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_count(reentrant: bool) -> None:
    model = _model()
    inner = model.base_model.model
    x = torch.randn(3, 8, requires_grad=True)
    whole = inner.forward
    inner.forward = lambda x: {
        "y": torch.utils.checkpoint.checkpoint(lambda x: whole(x)["y"], x, use_reentrant=reentrant)
    }
    model(x)["y"].sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_copies_are_not_watched() -> None:
    for again in (copy.deepcopy(_model("graph")), pickle.loads(pickle.dumps(_model("graph")))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _step(again)
