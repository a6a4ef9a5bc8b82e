"""Bases that do more than the product with their weight, and hooks on them: un-merged is merged, and once is once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d, embedding, layer_norm, linear
from torch.nn.utils import prune, spectral_norm, weight_norm
from transformers.pytorch_utils import Conv1D

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import UnsupportedLayerError
from tests.support.contract_cases import Case, cases, randomize
from tests.support.contract_layers import KINDS, AttentionNet, Kind, Net


class ScaledInput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * 0.7 + 0.1)


class ScaledOutput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh() * 2


class NormedInput(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(layer_norm(x, x.shape[-1:]))


class NormalizedRows(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight / self.weight.norm(dim=0, keepdim=True), self.bias)


class SecondTable(nn.Linear):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.table = nn.Parameter(torch.randn(self.out_features, self.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + linear(x, self.table)


class WithScores(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, self.weight.square().sum(1) + y.mean()


class ScaledTransposed(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sin()) + self.weight.sum(0)


class StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        W = self.weight
        W = (W - W.mean((1, 2, 3), keepdim=True)) / (W.std((1, 2, 3), keepdim=True) + 1e-3)
        return conv2d(x, W, self.bias, self.stride, self.padding, self.dilation, self.groups)


class CausalConv(nn.Conv1d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv1d(nn.functional.pad(x, (2, 0)), weight.tanh(), bias)


class PointConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.abs())


class ScaledEmbedding(nn.Embedding):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens) * 3 + self.weight.mean(0)


class NormedEmbedding(nn.Embedding):
    def forward(self, tokens: Tensor) -> Tensor:
        return embedding(tokens, self.weight / self.weight.abs().amax(-1, keepdim=True))


class TwoTables(nn.Embedding):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.extra = nn.Parameter(torch.randn(3, self.embedding_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        table = torch.cat([self.weight, self.extra])
        return embedding((tokens + 1) % len(table), table)


class ScaledAttention(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        y, weights = super().forward(*(x * 0.5 for x in args), **kwargs)
        return y * 2 + self.out_proj.weight.sum(0), weights


def _like(kind: str, name: str, build: Callable[[], nn.Module]) -> Kind:
    return replace(KINDS[kind], name=name, build=build)


def _attention() -> nn.Module:
    return AttentionNet(ScaledAttention(8, 2))


SUBCLASSES = [
    *(_like("linear_rank3", c.__name__, lambda c=c: Net(c(12, 20)))  # type: ignore[misc]
      for c in (ScaledInput, ScaledOutput, NormedInput, NormalizedRows, SecondTable, WithScores)),
    _like("transposed_linear", "ScaledTransposed", lambda: Net(ScaledTransposed(20, 12))),
    _like("conv2d", "StandardizedConv", lambda: Net(StandardizedConv(4, 8, (3, 2), padding=1))),
    _like("conv1d_same", "CausalConv", lambda: Net(CausalConv(4, 12, 3))),
    _like("conv2d_1x1", "PointConv", lambda: Net(PointConv(8, 12, 1))),
    *(_like("embedding", c.__name__, lambda c=c: Net(c(11, 12)))  # type: ignore[misc]
      for c in (ScaledEmbedding, NormedEmbedding, TwoTables)),
    _like("attention", "ScaledAttention", _attention),
]  # fmt: skip
MORE = [
    Case(kind, side, option)
    for kind in SUBCLASSES
    for side in kind.sides
    for option in ("exact", "magnitude", "together")
]


def _outputs(found: Any) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("case", MORE, ids=str)
def test_a_subclass_computes_un_merged_what_it_computes_merged(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    for grad, training in ((False, False), (True, True)):
        model.train(training)
        with torch.set_grad_enabled(grad):
            found = _outputs(model(*inputs))
            merged = case.trained()
            if training:  # COFT has moved the parameters into their ball
                merged.load_state_dict(model.state_dict())
            wanted = _outputs(merged.merge_and_unload()(*inputs))
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            # Dividing by a small norm, or a second layer behind it, carries a rounding further: a few times eight.
            case.close(one.detach(), other.detach(), roundings=32)
        assert all(not grad or one.requires_grad for one in found)
    plain = _outputs(case.base()(*inputs))
    assert any((one - other).abs().max() > 1e-2 for one, other in zip(found, plain, strict=True))


HOOKED = cases("exact", "magnitude")


def _same(found: Any, wanted: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True) if isinstance(a, Tensor))


@pytest.mark.parametrize("case", HOOKED, ids=str)
def test_hooks_of_a_base_see_the_input_and_the_output_once(case: Case) -> None:
    base, inputs = case.base(), case.inputs()
    seen: list[tuple[str, Any, Any]] = []
    if case.kind.name == "attention_output":
        return  # attention reads the weight of its out_proj and never calls it
    hooked = base.layer.linear1 if case.kind.name == "encoder_layer" else base.layer
    hooked.register_forward_pre_hook(lambda _, args: seen.append(("before", args, None)))
    hooked.register_forward_hook(lambda _, args, output: seen.append(("after", args, output)))
    model = get_peft_model(base, OFTConfig(**case.config)).eval()
    randomize(model)
    for grad in (False, True):
        seen.clear()
        with torch.set_grad_enabled(grad):
            output = model(*inputs)
        assert [what for what, _, _ in seen] == ["before", "after"]
        if hooked is base.layer or case.kind.name != "encoder_layer":
            assert _same(seen[0][1], inputs) and _same(seen[1][1], inputs)
            assert torch.equal(_outputs(seen[1][2])[0], output)
        case.close(output.detach(), case.trained()(*inputs).detach())


@pytest.mark.parametrize("case", HOOKED, ids=str)
def test_hooks_that_change_the_input_and_the_output(case: Case) -> None:
    if case.kind.name in ("attention_output", "encoder_layer"):
        return

    def hooked(model: nn.Module) -> nn.Module:
        def before(_: nn.Module, args: Any) -> Any:
            return tuple(x * 0.5 + 0.2 if x.is_floating_point() else x for x in args[:1]) + args[1:]

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            found = _outputs(output)
            changed = found[0].tanh() * 2
            return (changed, *found[1:]) if isinstance(output, tuple) else changed

        layer = model.layer
        layer.register_forward_pre_hook(before)
        layer.register_forward_hook(after)
        return model

    model = randomize(get_peft_model(hooked(case.base()), OFTConfig(**case.config)).eval())
    with torch.no_grad():
        found = model(*case.inputs())
        model.merge_adapter()
        case.close(found, model(*case.inputs()))
        model.unmerge_adapter()
        assert torch.equal(model(*case.inputs()), found)
        plain = hooked(case.trained().merge_and_unload())
        case.close(found, plain(*case.inputs()))


@pytest.mark.parametrize("case", [c for c in HOOKED if c.options == "exact"], ids=str)
def test_full_backward_hooks_see_one_gradient(case: Case) -> None:
    if case.kind.name in ("attention_output", "encoder_layer") or not case.inputs()[0].is_floating_point():
        return
    base, seen = case.base(), []
    base.layer.register_full_backward_hook(lambda _, into, out: seen.append((into, out)))
    base.layer.register_full_backward_pre_hook(lambda _, out: seen.append((None, out)))
    model = randomize(get_peft_model(base, OFTConfig(**case.config)).eval())
    x, *others = case.inputs()
    x.requires_grad_()
    output = model(x, *others)
    output.backward(torch.ones_like(output))
    assert len(seen) == 2
    assert torch.equal(seen[0][1][0], torch.ones_like(output))
    gradient = seen[1][0][0]
    assert gradient is not None and x.grad is not None
    case.close(gradient, x.grad)


def _old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the old one, by hooks, is what is tested
        weight_norm(layer)


COMPUTED: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": _old_weight_norm,
    "spectral_norm": spectral_norm,
    "prune": lambda layer: prune.ln_structured(layer, "weight", 0.3, n=2, dim=0),
    "parametrize": torch.nn.utils.parametrizations.weight_norm,
}
WEIGHTS = [c for c in cases("exact") if c.kind.turns[0].parameter == "layer.weight" and "experts" not in c.kind.name]


@pytest.mark.parametrize("how", COMPUTED)
@pytest.mark.parametrize("case", [c for c in WEIGHTS if c.side == "in"], ids=str)
def test_a_weight_that_hooks_compute_is_refused_before_anything_changes(case: Case, how: str) -> None:
    torch.manual_seed(1)
    base = nn.ModuleDict({"first": nn.Linear(4, 4), "layer": case.kind.build().layer}).eval()
    COMPUTED[how](base["layer"])
    state = {name: value.clone() for name, value in base.state_dict().items()}
    modules = {name: type(module) for name, module in base.named_modules()}
    hooks = {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in base.named_modules()}
    flags = {name: p.requires_grad for name, p in base.named_parameters()}
    config = OFTConfig(oft_block_size=2, **{"target_modules": ["first", "layer"]} | case.kind.targets)
    if config.target_modules != []:
        config.target_modules = {"first", "layer"}
    with pytest.raises((UnsupportedLayerError, ValueError)) as raised:
        get_peft_model(base, config)
    assert isinstance(raised.value, UnsupportedLayerError) or case.kind.name == "parameter"
    assert {name: type(module) for name, module in base.named_modules()} == modules
    assert base.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in base.state_dict().items())
    assert {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in base.named_modules()} == hooks
    assert {name: p.requires_grad for name, p in base.named_parameters()} == flags
