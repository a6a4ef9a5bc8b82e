"""Adapters combined: what each way means, sizes that differ, and what has no common form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, PeftModel, get_peft_model
from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.rotation.reflections import Reflections
from orthotune.rotation.spec import RotationSpec
from orthotune.tuner.combination import Combination
from tests.support.contract_cases import KINDS, Case, randomize

X = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 12), nn.Linear(12, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(torch.tanh(self.a(x)))


def two(first: dict[str, Any], second: dict[str, Any]) -> Any:
    """Adapters A and B on one model."""
    torch.manual_seed(0)
    base = {"oft_block_size": 4, "target_modules": ["a", "b"]}
    model = randomize(get_peft_model(Net(), OFTConfig(**base | first), adapter_name="A"), adapter="A")
    model.add_adapter("B", OFTConfig(**base | second))
    return randomize(model, seed=9, adapter="B").eval()


def output(model: Any, *adapters: str, **strengths: float) -> torch.Tensor:
    for name, t in strengths.items():
        model.set_scale(name, t)
    model.base_model.set_adapter(list(adapters))
    with torch.no_grad():
        found = model(X)
    for name in strengths:
        model.set_scale(name, 1)
    return found


#: some dozen roundings of float32 in outputs of about 1
CLOSE: dict[str, Any] = {"atol": 5e-6, "rtol": 0}
PAIRS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({}, {"oft_block_size": 6}),
    ({"block_share": True}, {"block_share": True, "oft_block_size": 6}),
    ({"block_share": True}, {"oft_block_size": 3}),
    ({"scaled": True}, {"coft": True, "eps": 0.5}),
    ({"target_modules": ["a"]}, {"target_modules": ["b"], "oft_block_size": 2}),
]


@pytest.mark.parametrize("first, second", PAIRS)
@pytest.mark.parametrize("side", ["in", "out"])
def test_product_is_one_after_the_other(first: dict[str, Any], second: dict[str, Any], side: str) -> None:
    model = two(first | {"side": side}, second | {"side": side})
    assert model.add_weighted_adapter(["A", "B"], [0.7, -0.4], combination_type="product") == "A_then_B_product"
    expected = output(model, "A", "B", A=0.7, B=-0.4)
    torch.testing.assert_close(output(model, "A_then_B_product"), expected, **CLOSE)
    model.add_weighted_adapter(["B", "A"], [-0.4, 0.7], combination_type="product")
    expected = output(model, "B", "A", A=0.7, B=-0.4)
    torch.testing.assert_close(output(model, "B_then_A_product"), expected, **CLOSE)


@pytest.mark.parametrize("first, second", PAIRS)
@pytest.mark.parametrize("kind", ["geodesic", "tangent"])
def test_means_know_no_order_and_end_in_the_adapters(first: dict[str, Any], second: dict[str, Any], kind: str) -> None:
    model = two(first | {"magnitude": True}, second)
    for name, names, weights in (
        ("AB", ["A", "B"], [0.7, 0.3]), ("BA", ["B", "A"], [0.3, 0.7]), ("a", ["A", "B"], [1, 0]),
        ("halved", ["A"], [0.5]), ("back", ["B"], [-1]),
    ):  # fmt: skip
        model.add_weighted_adapter(names, weights, name, kind)
    torch.testing.assert_close(output(model, "AB"), output(model, "BA"), **CLOSE)
    torch.testing.assert_close(output(model, "a"), output(model, "A"), **CLOSE)
    torch.testing.assert_close(output(model, "halved"), output(model, "A", A=0.5), **CLOSE)
    torch.testing.assert_close(output(model, "back"), output(model, "B", B=-1), **CLOSE)
    assert (output(model, "AB") - output(model, "A")).abs().max() > 1e-3


def test_ties_of_everything_and_of_the_largest() -> None:
    model = two({}, {})
    model.add_weighted_adapter(["A"], [1.0], "all", "ties", density=1.0)
    torch.testing.assert_close(output(model, "all"), output(model, "A"), **CLOSE)
    model.add_weighted_adapter(["A", "B"], [0.5, 0.5], "few", "ties", density=0.2)
    assert torch.isfinite(output(model, "few")).all()


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_layer_kind(kind: Any) -> None:
    case = Case(kind)
    model = case.trained()
    model.add_adapter("B", OFTConfig(**case.config | {"oft_block_size": 2, "magnitude": True}))
    randomize(model, seed=9, adapter="B").eval()
    model.add_weighted_adapter(["default", "B"], [0.6, 0.5], "both", "product")
    inputs = case.inputs()
    with torch.no_grad():
        model.set_scale("default", 0.6)
        model.set_scale("B", 0.5)
        model.base_model.set_adapter(["default", "B"])
        expected = model(*inputs)
        model.base_model.set_adapter("both")
        case.close(model(*inputs), expected, roundings=24)


def test_the_result_is_saved_and_loaded_as_one(tmp_path: Any) -> None:
    model = two({}, {"oft_block_size": 6, "target_modules": ["a"]})
    model.add_weighted_adapter(["A", "B"], [0.7, 0.3], "C")
    expected = output(model, "C")
    model.save_pretrained(str(tmp_path), selected_adapters=["C"])
    torch.manual_seed(0)
    other = PeftModel.from_pretrained(Net(), str(tmp_path / "C")).eval()
    with torch.no_grad():
        assert torch.equal(other(X), expected)


def test_a_series_becomes_the_nearest_rotation() -> None:
    model = two({"use_cayley_neumann": True}, {})
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".A." in name:
                p.mul_(0.1)
    with pytest.warns(UserWarning, match="Neumann series were replaced by the nearest rotations"):
        model.add_weighted_adapter(["A"], [1], "C")
    torch.testing.assert_close(output(model, "C"), output(model, "A"), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "first, second, how, message",
    [
        ({"side": "out"}, {}, {}, "layer '.*'. Found: side in and out"),
        ({"magnitude": True, "side": "out"}, {"side": "out"}, {"combination_type": "product"}, "a magnitude between"),
        ({}, {}, {"combination_type": "svd"}, "combination_type='svd'"),
        ({}, {}, {"combination_type": "svd_lora"}, "orthotune combine"),
        ({}, {}, {"combination_type": "ties"}, "density"),
        ({}, {}, {"adapter_name": "A"}, "an unused name"),
        ({"bias": "oft_only"}, {}, {}, "parameters that it replaces"),
        ({"use_cayley_neumann": True}, {}, {}, "a Neumann series that is far from any rotation"),
    ],
)
def test_refusals_leave_the_model_as_it_was(
    first: dict[str, Any], second: dict[str, Any], how: dict[str, Any], message: str
) -> None:
    model = two(first, second)
    if first.get("use_cayley_neumann"):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if ".A." in name:
                    p.mul_(10)
    before = output(model, "A", "B")
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises((ConfigError, UnsupportedLayerError), match=message):
        model.add_weighted_adapter(["A", "B"], [0.5, 0.5], **how)
    assert [name for name, _ in model.named_parameters()] == names and set(model.peft_config) == {"A", "B"}
    assert torch.equal(output(model, "A", "B"), before)


def test_unknown_adapters_and_missing_weights() -> None:
    model = two({}, {})
    with pytest.raises(ConfigError, match="adapter 'D'"):
        model.add_weighted_adapter(["A", "D"], [1, 1])
    with pytest.raises(ConfigError, match="one for each of the 2"):
        model.add_weighted_adapter(["A", "B"], [1])


def test_the_rounding_of_directions_that_cancel_is_not_scaled() -> None:
    """An adapter and its inverse, written in bfloat16: what is left is the rounding of a file."""
    how = Combination((1.0, 1.0), "tangent", magnitude_correction=True)
    one = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    both = torch.stack([one, -one.bfloat16().double()])
    assert torch.equal(how.summed(both), both.sum(0))
    both[1] = -0.9 * one
    assert float(how.summed(both).norm()) == pytest.approx(1.9 * float(one.norm()))


def test_reflections_of_other_widths_or_layouts_are_refused() -> None:
    spec = RotationSpec(transform="reflections", rank=2)
    wide, narrow = Reflections(spec, torch.ones(2, 12)), Reflections(spec, torch.ones(2, 8))
    with pytest.raises(UnsupportedLayerError, match="'blk.lin'.*different numbers of features"):
        Combination((1.0, 1.0)).joint_family("blk.lin", [wide, narrow])
    channels = Reflections(replace(spec, conv="channels"), torch.ones(2, 12))
    with pytest.raises(UnsupportedLayerError, match="'blk.conv'.*conv channels and kernel"):
        Combination((1.0, 1.0)).joint_family("blk.conv", [wide, channels])
