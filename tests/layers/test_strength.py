"""A change of strength is seen at once, whatever was kept for the one before, and stays where it belongs."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError
from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization import rotation
from tests.support.contract_cases import randomize

LAYERS = ("q", "k", "v")


class Attention(nn.Module):
    """Three projections of one input, which share its turning."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(12, 8, bias=False) for _ in LAYERS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


def attention(**config: Any) -> Any:
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj"]
    return randomize(get_peft_model(Attention(), OFTConfig(oft_block_size=4, target_modules=targets, **config)).eval())


def fresh(t: float, x: torch.Tensor, train: bool = False, **config: Any) -> torch.Tensor:
    """What a model says that never had another strength."""
    model = attention(**config).train(train)
    model.set_scale("default", t)
    with torch.no_grad():
        return model(x)


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, OFTLayer)]


X = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", ["evaluation", "inference", "training"])
def test_shared_inputs_see_a_change(mode: str) -> None:
    model = attention().train(mode == "training")
    context = {"evaluation": torch.no_grad, "inference": torch.inference_mode, "training": torch.enable_grad}[mode]
    with context():
        for t in (1, 0.5, 1, -0.3, 0.5, 0):
            model.set_scale("default", t)
            for _ in range(3):  # the second call finds what stands, the third what stands for all
                # joined products of three layers and of one each may round apart
                torch.testing.assert_close(model(X).detach(), fresh(t, X), atol=1e-6, rtol=0)


def test_one_layer_of_a_shared_input_has_its_own_strength() -> None:
    model = attention()
    with torch.no_grad():
        whole, half = model(X), fresh(0.5, X)
        model.base_model.model.k_proj.set_scale("default", 0.5)
        for _ in range(3):
            found = model(X)
            torch.testing.assert_close(found[:, 8:16], half[:, 8:16], atol=1e-6, rtol=0)
            torch.testing.assert_close(found[:, :8], whole[:, :8], atol=1e-6, rtol=0)
            torch.testing.assert_close(found[:, 16:], whole[:, 16:], atol=1e-6, rtol=0)


def test_a_change_between_two_projections_of_one_input() -> None:
    model = attention()
    inner = model.base_model.model
    with torch.no_grad():
        inner.q_proj(X)
        model.set_scale("default", 0.5)
        torch.testing.assert_close(inner.k_proj(X), fresh(0.5, X)[:, 8:16], atol=1e-6, rtol=0)


def test_a_change_in_the_middle_of_training() -> None:
    model = attention().train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for t in (1, 0.5, 0.5, 1, 2):
        model.set_scale("default", t)
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
        twin = attention()
        twin.load_state_dict(model.state_dict())
        twin.set_scale("default", t)
        with torch.no_grad():
            torch.testing.assert_close(model(X), twin(X), atol=1e-6, rtol=0)


def test_planes_are_found_once_for_all_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    found = rotation.planes_of_skew
    monkeypatch.setattr(rotation, "planes_of_skew", lambda *args: (calls.append(1), found(*args))[1])
    model = attention()
    with torch.no_grad():
        for t in (0.2, 0.4, 1, 0.6, 0.2):
            model.set_scale("default", t)
            model(X)
    assert len(calls) == 3  # one for each layer


def test_what_is_merged_stays_at_its_strength() -> None:
    model = attention()
    model.add_adapter("more", OFTConfig(oft_block_size=2, target_modules=["q_proj"], side="out"))
    randomize(model, seed=8, adapter="more")
    model.set_scale("default", 0.5)
    layer = model.base_model.model.q_proj
    layer.merge(adapter_names=["default"])
    half = layer.base_layer.weight.detach().clone()
    layer.set_scale("default", 2)
    assert torch.equal(layer.base_layer.weight, half)
    layer.merge(adapter_names=["more"])
    both = layer.base_layer.weight.detach().clone()
    layer.unmerge()
    layer.set_scale("default", 0.5)
    layer.merge(adapter_names=["default", "more"])
    assert torch.equal(layer.base_layer.weight, both)
    assert layer.strength("default").t == 0.5


def test_scaling_follows_the_protocol() -> None:
    model = attention()
    layer = layers(model)[0]
    layer.set_scale("someone else's", 0.3)  # without effect, as diffusers expects
    layer.scale_layer(1)
    layer.set_scale("default", 0.7)
    layer.scale_layer(0.3)
    layer.scale_layer(0.5)
    layer.unscale_layer(0.5)
    assert layer.strength("default").t == pytest.approx(0.21)
    layer.unscale_layer()
    assert layer.strength("default").t == 1
    layer.scale_layer(0)
    with pytest.raises(ConfigError, match="nothing is left of"):
        layer.set_scale("default", 0)
        layer.unscale_layer(0)
    layer.set_scale("default", 0.5, "linear")
    layer.set_scale("default", 0.25)
    assert layer.strength("default").kind == "linear", "it stays until another is named"


def test_a_strength_is_one_adapters_own_and_ends_with_it() -> None:
    model = attention()
    model.add_adapter("more", OFTConfig(oft_block_size=4, target_modules=["q_proj"]))
    model.set_scale("more", 0.5)
    layer = model.base_model.model.q_proj
    assert layer.strength("default").t == 1
    model.delete_adapter("more")
    model.add_adapter("more", OFTConfig(oft_block_size=4, target_modules=["q_proj"]))
    assert layer.strength("more").t == 1 and layer.rotations("more")[""].strength.t == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_a_copy_has_the_strength(copied: Any) -> None:
    model = attention()
    model.set_scale("default", 0.5)
    twin = copied(model.base_model.model)
    with torch.no_grad():
        torch.testing.assert_close(twin(X), fresh(0.5, X), atol=1e-6, rtol=0)
        model.set_scale("default", 1)
        torch.testing.assert_close(twin(X), fresh(0.5, X), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", None, True, torch.tensor(0.5)])
def test_a_strength_is_a_number(value: Any) -> None:
    model = attention()
    with pytest.raises(ConfigError, match="a finite number"):
        model.set_scale("default", value)


def test_refusals_change_nothing() -> None:
    model = attention(magnitude=True)
    with torch.no_grad():
        model.base_model.model.v_proj.oft_magnitude["default"].weight[2] = -1
    with pytest.raises(ConfigError, match=r"layer '.*v_proj'.*a magnitude of 0 or below"):
        model.set_scale("default", 0.5)
    with pytest.raises(ConfigError, match="kind='cubic'"):
        model.set_scale("default", 0.5, "cubic")
    with pytest.raises(ConfigError, match="Did you mean default"):
        model.set_scale("defualt", 0.5)
    assert all(layer.strength("default").t == 1 for layer in layers(model))
    model.set_scale("default", 0.5, "rotation")


def test_a_compiled_model_sees_a_change() -> None:
    model = attention()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        for t in (1, 0.5, -1):
            model.set_scale("default", t)
            torch.testing.assert_close(compiled(X), fresh(t, X), atol=1e-6, rtol=0)
    compiled.train()
    for t in (0.5, 1):
        model.set_scale("default", t)
        compiled(X).square().mean().backward()
        torch.testing.assert_close(compiled(X).detach(), fresh(t, X), atol=1e-6, rtol=0)
