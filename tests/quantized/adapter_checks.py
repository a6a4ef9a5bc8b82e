"""What adapters do on plain linear layers they do on a quantized one: the reference is the same adapter on an
``nn.Linear`` that holds the dequantized weight. A test file runs its layers through ``ADAPTER_CHECKS``."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError, MergeError
from tests.quantized.layer_checks import BLOCK, OUT, Subject, assert_same, eps, error, parts, stored
from tests.support.contract_cases import randomize
from tests.support.contract_layers import Net

CONFIGS: dict[str, dict[str, Any]] = {
    "in": {"magnitude": True},
    "out": {"side": "out"},
    "out-scaled": {"side": "out", "magnitude": True, "scaled": True, "coft": True, "eps": 0.6},
    "series": {"use_cayley_neumann": True, "block_share": True},
}


def beside(subject: Subject, **config: Any) -> tuple[PeftModel, PeftModel]:
    """The adapted quantized layer, and the same adapter on the dequantized weight in float32."""
    found = subject.model(**config)
    layer, library = parts(found)
    with torch.no_grad():
        found(subject.x())  # some layers convert their scales to the dtype of the first input
    plain, bias = nn.Linear(layer_in(found), OUT, bias=library.bias(layer) is not None), library.bias(layer)
    plain.weight.data = library.dequantize(layer)
    if bias is not None:
        plain.bias.data = bias.detach().float().clone()
    fields = {"oft_block_size": BLOCK, "target_modules": ["layer"], **config}
    return found, randomize(get_peft_model(Net(plain.requires_grad_(False)), OFTConfig(**fields)))


def layer_in(model: PeftModel) -> int:
    layer, library = parts(model)
    return library.features(layer)[1]


def limit(subject: Subject, roundings: int = 8) -> float:
    """Each factor and product is rounded once to the activations' dtype; float32 products differ in their order."""
    return subject.product + roundings * eps(subject.dtype)


def check_every_option(subject: Subject) -> None:
    """Outputs, and gradients to the input and to everything trained, for sides, magnitudes and maps."""
    for options in CONFIGS.values():
        found, wanted = beside(subject, **options)
        g = torch.randn(7, OUT, generator=torch.Generator().manual_seed(8))
        x, y = subject.x().requires_grad_(True), subject.x().float().requires_grad_(True)
        a, b = found.train()(x), wanted.train()(y)
        assert error(a, b) < limit(subject)
        a.backward(g.to(a.dtype))
        b.backward(g)
        assert error(x.grad, y.grad) < 8 * eps(subject.dtype)
        pairs = zip(trained(found), trained(wanted), strict=True)
        # A magnitude's gradient is made of the library's own product, with its own error.
        assert all(error(p.grad, q.grad) < limit(subject) for p, q in pairs)


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _two(model: PeftModel) -> PeftModel:
    other = OFTConfig(oft_block_size=8, side="out", magnitude=True, target_modules=["layer"])
    model.add_adapter("second", other)
    randomize(model, seed=9, adapter="second")
    model.base_model.set_adapter(["default", "second"])
    return model.eval()


def check_several_adapters(subject: Subject) -> None:
    """Several adapters act in order, and are merged together in float and quantized once."""
    found, wanted = map(_two, beside(subject))
    layer, library = parts(found)
    x = subject.x()
    with torch.no_grad():
        y = found(x)
        assert error(y, wanted(x.float())) < limit(subject)
        if subject.merges:
            return
        before = stored(found)
        found.merge_adapter()
        at_once = library.dequantize(layer)
        wanted.merge_adapter()
        first = error(library.dequantize(parts(subject.model())[0]), subject.linear().weight)
        assert error(at_once, wanted.base_model.model.layer.base_layer.weight) < 1.6 * first
        found.unmerge_adapter()
        assert_same(stored(found), before)
        found.merge_adapter(["default"])
        found.merge_adapter(["second"])  # from the original again, not from what was quantized between
        assert torch.equal(library.dequantize(layer), at_once)
        with found.disable_adapter():
            found(x)
        assert_same(stored(found), before)
        assert torch.equal(found(x), y)


def check_mixed_batch(subject: Subject) -> None:
    """Rows of one batch under adapters of their own, values and gradients, as on the dequantized weight; see PEFT's
    ``adapter_names``. Merged, it is refused."""
    for size in (BLOCK, 8):  # the same layout as the first adapter's, and another one
        found, wanted = beside(subject, magnitude=size == 8)
        for model in (found, wanted):
            model.add_adapter("second", OFTConfig(oft_block_size=size, target_modules=["layer"]))
            model.add_adapter("out", OFTConfig(oft_block_size=8, side="out", target_modules=["layer"]))
            for seed, name in enumerate(("second", "out")):
                randomize(model, seed, name)
            model.eval()
            for key, parameter in model.named_parameters():
                parameter.requires_grad_("oft_" in key)
        names = ["second", "__base__", "default", "out", "second", "default", "default"]
        x = torch.randn(len(names), 3, layer_in(found), generator=torch.Generator().manual_seed(3)).to(subject.dtype)
        a, b = found(x, adapter_names=names), wanted(x.float(), adapter_names=names)
        assert all(error(row, other) < limit(subject) for row, other in zip(a, b, strict=True))
        with torch.no_grad():
            assert error(found(x, adapter_names=names), b) < limit(subject)
        for model, y in ((found, a), (wanted, b)):
            model.zero_grad()
            y.float().square().sum().backward()
        # The gradient is made of the outputs, with the library's own error in them.
        pairs = zip(trained(found), trained(wanted), strict=True)
        assert all(error(p.grad, q.grad) < 4 * limit(subject) for p, q in pairs)
        if not subject.merges:
            found.merge_adapter(["default"])
            with pytest.raises(ConfigError, match="call `unmerge_adapter` first"):
                found(x, adapter_names=names)


def check_delta(subject: Subject) -> None:
    """What an adapter adds is that of the dequantized weight, merged or not."""
    found, wanted = beside(subject)
    layers = [model.base_model.model.layer for model in (found, wanted)]
    assert error(layers[0].get_delta_weight("default"), layers[1].get_delta_weight("default")) < 1e-6
    if not subject.merges:
        found.merge_adapter()
        assert error(layers[0].get_delta_weight("default"), layers[1].get_delta_weight("default")) < 1e-6


def check_a_wrong_write_is_undone(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library whose write is lost, as a write through ``weight.data`` of a tensor class is, is found out."""
    if subject.merges:
        return
    found = subject.model().eval()
    _, library = parts(found)
    before = stored(found)
    # A rotation by a right angle is further than any rounding, two bits included.
    for parameter in trained(found):
        parameter.data.normal_(std=1.0, generator=torch.Generator().manual_seed(1))
    write = type(library).requantize

    def transposed(self: Any, module: nn.Module, weight: Tensor) -> None:
        write(self, module, weight.flip(0))

    for wrong in (lambda *_: None, transposed):
        monkeypatch.setattr(type(library), "requantize", wrong)
        with pytest.raises(MergeError, match="Nothing was changed"):
            found.merge_adapter()
        assert not found.base_model.model.layer.merged
        assert_same(stored(found), before)


def check_a_small_rotation_is_told(subject: Subject) -> None:
    """A rotation below the steps of the quantized numbers is lost in a merge: that is said, with the way out."""
    if subject.merges:
        return
    found = subject.model().eval()
    for parameter in trained(found):
        parameter.data.mul_(1e-4)
    with pytest.warns(UserWarning, match=r"smaller than the steps .* layer\. merge_and_unload\(dequantize=True\)"):
        found.merge_adapter()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        subject.model().merge_adapter()


def check_copies(subject: Subject) -> None:
    """A copy of an adapted model is a model of its own, where the library's layers can be copied at all."""
    try:
        copy.deepcopy(subject.base())
    except RuntimeError:
        return
    found = subject.model().eval()
    again, x = copy.deepcopy(found), subject.x()
    with torch.no_grad():
        y = found(x)
        for parameter in trained(found):
            parameter.zero_()
        assert not torch.equal(found(x), y)
        assert torch.equal(again(x), y)
    assert again.base_model.model.layer.get_base_layer().forward.module is again.base_model.model.layer.get_base_layer()


def check_bias_trains(subject: Subject) -> None:
    """A bias that is trained gets its gradient through every backward."""
    found = subject.model().train()
    layer, library = parts(found)
    bias = library.bias(layer)
    if not isinstance(bias, nn.Parameter):
        return  # a buffer: nothing trains it
    bias.requires_grad_(True)
    y = found(subject.x())
    g = torch.randn_like(y)
    y.backward(g)
    assert bias.grad is not None
    # Seven rows are summed, in bfloat16 with a rounding at each.
    assert error(bias.grad, g.float().sum(0)) < 7 * eps(subject.dtype)


ADAPTER_CHECKS = [
    check_every_option,
    check_several_adapters,
    check_mixed_batch,
    check_delta,
    check_a_small_rotation_is_told,
    check_copies,
    check_bias_trains,
]
