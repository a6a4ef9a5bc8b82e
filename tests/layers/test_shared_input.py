"""Layers of one input turn it together; whatever a model does, none gets a result made for something else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.layers import shared_input
from orthotune.layers.linear import Linear


class Attention(nn.Module):
    """Projections of different heights, called as the mode says."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(24, 36), nn.Linear(24, 12), nn.Linear(24, 12)
        self.how = "self"

    def forward(self, x: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        if self.how == "key first":
            k, q, v = self.k_proj(x), self.q_proj(x), self.v_proj(x)
        elif self.how == "no value":
            q, k = self.q_proj(x), self.k_proj(x)
            v = k
        elif self.how == "changed in between":
            q = self.q_proj(x)
            x = x.mul_(2)
            k, v = self.k_proj(x), self.v_proj(x)
        else:
            source = x if other is None else other
            q, k, v = self.q_proj(x), self.k_proj(source), self.v_proj(source)
        return torch.cat([q, k, v], -1)


def attention(dtype: torch.dtype = torch.float32, **changes):
    torch.manual_seed(0)
    config = {"oft_block_size": 8, "target_modules": ["q_proj", "k_proj", "v_proj"], "init_weights": False, **changes}
    return get_peft_model(Attention().to(dtype), OFTConfig(**config))


def alone(model):
    """The same model, each layer on its own."""

    def call(*args):
        kept = [(slot, slot.shared) for layer in layers(model) for slot in layer.slots.values()]
        repeated = [(layer, layer.__dict__.get("_again")) for layer in layers(model)]
        for slot, _ in kept:
            slot.shared = None
        for layer, _ in repeated:
            layer.__dict__["_again"] = None
        try:
            return model(*args)
        finally:
            for slot, shared in kept:
                slot.shared = shared
            for layer, again in repeated:
                layer.__dict__["_again"] = again

    return call


def layers(model):
    return [module for module in model.modules() if isinstance(module, Linear)]


def together(model) -> bool:
    found = {id(slot.shared): slot.shared for layer in layers(model) for slot in layer.slots.values()}
    return len(found) == 1 and all(shared.why_not is None for shared in found.values())


@pytest.fixture
def turned(monkeypatch):
    """How many rotations each product had."""
    counts, each, row = [], shared_input.rotate_each, shared_input.rotate_joined
    monkeypatch.setattr(shared_input, "rotate_each", lambda x, Rs: counts.append(len(Rs)) or each(x, Rs))
    monkeypatch.setattr(shared_input, "rotate_joined", lambda x, R, n: counts.append(n) or row(x, R, n))
    return counts


X = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1))
OTHER = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 5])
def test_one_product_gives_the_bits_of_three(turned, dtype, tokens):
    model = attention(dtype)
    x = X[:1, :tokens].to(dtype)
    expected = alone(model)(x)
    for grad in (True, False, False):
        with torch.set_grad_enabled(grad):
            assert torch.equal(model(x), expected)
    assert turned == [3, 3, 3]
    assert together(model)


def test_gradients_are_those_of_three_layers():
    model, grads = attention(torch.float64), []
    trained = [p for p in model.parameters() if p.requires_grad]
    for one in (model, alone(model)):
        x = X.double().requires_grad_()
        grads.append(torch.autograd.grad(one(x).square().sum(), [x, *trained]))
    assert len(grads[0]) == 4
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected)  # sums in another order, float64


def test_the_gradient_of_the_input_is_rounded_once():
    """Three bfloat16 gradients added one by one lose bits that one sum in float32 keeps."""
    model = attention(torch.bfloat16)
    exact, errors = copy.deepcopy(model).double(), []
    for one in (exact, model, alone(model)):
        x = X.to(torch.float64 if one is exact else torch.bfloat16).requires_grad_()
        one(x).sum().backward()
        errors.append(x.grad.double())
    reference, shared, separate = errors
    assert (shared - reference).norm() <= 1.05 * (separate - reference).norm()  # 5%: both round the products


@pytest.mark.parametrize("how", ["key first", "no value", "changed in between", "cross"])
@pytest.mark.parametrize("grad", [True, False])
def test_what_does_not_fit_ends_the_sharing_and_not_the_exactness(how, grad):
    model = attention()
    model.base_model.model.how = how
    other = OTHER if how == "cross" else None
    twin = alone(model)
    with torch.set_grad_enabled(grad):
        for _ in range(3):
            assert torch.equal(model(X.clone(), other), twin(X.clone(), other))
    assert not together(model)


def test_cross_attention_of_diffusers_shares_key_and_value_only(turned):
    class Cross(nn.Module):
        is_cross_attention = True

        def __init__(self) -> None:
            super().__init__()
            self.to_q, self.to_k, self.to_v = (nn.Linear(24, 12) for _ in range(3))

        def forward(self, x, y):
            return self.to_q(x).sum() + self.to_k(y).sum() + self.to_v(y).sum()

    config = OFTConfig(oft_block_size=8, target_modules=["to_q", "to_k", "to_v"], init_weights=False)
    model = get_peft_model(Cross(), config)
    assert model(X, OTHER) == alone(model)(X, OTHER)
    assert turned == [1, 2]


def test_a_result_without_gradient_is_not_used_where_one_is_wanted():
    model = attention().base_model.model
    with torch.no_grad():
        model.q_proj(X)
    model.k_proj(X).sum().backward()
    assert model.k_proj.oft_R["default"].weight.grad.abs().max() > 0


def test_blocks_of_other_sizes_and_other_sides_stay_apart(turned):
    model = attention(block_size_pattern={"k_proj": 12})
    assert torch.equal(model(X), alone(model)(X))
    assert sorted(turned) == [1, 2]
    assert attention(side="out", oft_block_size=12).base_model.model.q_proj.slots["default"].shared is None


def change_in_place(model):
    for layer in layers(model):
        layer.oft_R["default"].weight.data.mul_(1.5)
        layer.oft_R.train(model.training)


def step(model):
    with torch.enable_grad():
        model(X).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()


def write_past_the_version_after_a_backward(model):
    with torch.enable_grad():
        model(X).sum().backward()
    for layer in layers(model):
        layer.oft_R["default"].weight.data.mul_(1.5)


def second_adapter(model):
    config = OFTConfig(oft_block_size=12, target_modules=["q_proj", "k_proj"], init_weights=False)
    model.add_adapter("second", config)
    model.set_adapter("second")


def both_adapters(model):
    second_adapter(model)
    model.base_model.set_adapter(["default", "second"])


def start_afresh(model):
    layer = model.base_model.model.k_proj
    layer.update_layer("default", layer.oft_settings["default"])


def replace_parameter(model):
    layer = model.base_model.model.v_proj
    layer.oft_R["default"].weight = nn.Parameter(layer.oft_R["default"].weight.detach() * 2)


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        step,
        write_past_the_version_after_a_backward,
        second_adapter,
        both_adapters,
        start_afresh,
        replace_parameter,
        lambda model: model.base_model.disable_adapter_layers(),
        lambda model: model.merge_adapter(),
        lambda model: model.base_model.model.k_proj.merge(),
        lambda model: model.double(),
        lambda model: model.train(),
        lambda model: model.base_model.model.q_proj.enable_adapters(False),
        lambda model: model.base_model.model.v_proj.enable_adapters(False),
    ],
)
def test_what_stands_in_evaluation_falls_with_any_change(change):
    model = attention(module_dropout=0.0).eval()
    with torch.no_grad():
        before = model(X)
        assert torch.equal(model(X), before)
        change(model)
        x = X.to(next(model.parameters()).dtype)
        for _ in range(2):
            # One layer's new numbers renew its batch, which may then take one factor more: float32.
            torch.testing.assert_close(model(x), alone(model)(x), atol=2e-6, rtol=2e-6)


def other_class(base, monkeypatch):
    base.__class__ = type("Doubled", (nn.Linear,), {"forward": lambda self, x: 2 * nn.Linear.forward(self, x)})


def own_forward(base, monkeypatch):
    base.forward = lambda x: 2 * nn.Linear.forward(base, x)


def hook(base, monkeypatch):
    base.register_forward_hook(lambda module, inputs, output: 2 * output)


def patched_class(base, monkeypatch):
    plain = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: plain(self, x) * (2 if self is base else 1))


def hook_of_every_module(base, monkeypatch):
    registered = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: 2 * output if module is base else output
    )
    base.registered = registered


def weight_and_bias_replaced(base, monkeypatch):
    base.weight, base.bias = nn.Parameter(2 * base.weight), nn.Parameter(2 * base.bias)


def weight_moved(base, monkeypatch):
    base.weight.data, base.bias.data = 2 * base.weight.data, 2 * base.bias.data


@pytest.mark.parametrize("name", ["q_proj", "v_proj"])
@pytest.mark.parametrize(
    "change",
    [other_class, own_forward, hook, patched_class, hook_of_every_module, weight_and_bias_replaced, weight_moved],
)
def test_a_repeated_call_sees_what_was_done_to_the_wrapped_layer(change, name, monkeypatch):
    """Each change doubles the output of one layer."""
    model = attention().eval()
    with torch.no_grad():
        for _ in range(2):
            before = model(X).split([36, 12, 12], -1)
        base = getattr(model.base_model.model, name).base_layer
        change(base, monkeypatch)
        try:
            for _ in range(3):
                after = model(X).split([36, 12, 12], -1)
                for layer, y, z in zip(["q_proj", "k_proj", "v_proj"], before, after, strict=True):
                    # float32, of a product that may round elsewhere
                    torch.testing.assert_close(z, y * (2 if layer == name else 1), atol=2e-6, rtol=2e-6)
        finally:
            if hasattr(base, "registered"):
                base.registered.remove()


def test_a_copy_shares_nothing_with_the_original():
    model = attention()
    twin = copy.deepcopy(model)
    assert all(slot.shared is None for layer in layers(twin) for slot in layer.slots.values())
    # float32: in a batch a rotation may take one factor more than alone
    torch.testing.assert_close(twin(X), model(X), atol=1e-6, rtol=1e-6)
    assert together(model)


def test_rotations_that_are_away_are_left_to_their_own_layer():
    """As offloading does: the weights of a layer come when that layer is called."""
    model = attention()
    expected, key = model(X), model.base_model.model.k_proj.oft_R["default"]
    numbers = key.weight.data.clone()
    key.weight = nn.Parameter(torch.empty_like(numbers, device="meta"))

    def bring(module, args):
        module.weight = nn.Parameter(numbers)

    key.register_forward_pre_hook(bring)
    assert torch.equal(model(X), expected)


def test_many_rows_without_gradients_turn_the_weight():
    torch.manual_seed(0)
    x = torch.randn(200, 24)
    for settings in ({}, {"side": "out"}, {"magnitude": True}):
        model = attention(**settings, **({"block_size_pattern": {}} if not settings else {"oft_block_size": 4})).eval()
        with torch.no_grad():
            many, few = model(x), torch.cat([model(part) for part in x.split(8)])
        torch.testing.assert_close(many, few, atol=2e-6, rtol=2e-6)  # float32, 24 terms
    with torch.no_grad():
        model.merge_adapter()
        torch.testing.assert_close(model(x), many, atol=2e-6, rtol=2e-6)
