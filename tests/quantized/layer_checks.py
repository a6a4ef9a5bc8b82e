"""The checks for a layer of any quantized library: ``test_every_library.py`` runs ``CHECKS`` over all subjects.

The reference is dense and in float64: the block-diagonal rotation written out in full (``contracts/reference.py``) and
the dequantized weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from orthotune import OFTConfig, get_peft_model, merge_aware
from orthotune.errors import ConfigError, MergeError
from orthotune.quantized.contract import Library
from orthotune.quantized.registry import library_of
from tests.support.contract_cases import randomize
from tests.support.contract_layers import Net
from tests.support.contract_reference import dense, rotation

IN, OUT, BLOCK = 64, 96, 16


@dataclass(frozen=True)
class Subject:
    """A layer of a library.

    Args:
        name: of the test.
        build: a quantized layer from a float one, in evaluation.
        mode: what messages say of it.
        bits: of a stored number; what is known of the weight without the library.
        dtype: of the activations.
        product: largest relative error of the library's product beside its own dequantized weight.
        merges: why it does not, or None.
    """

    name: str
    build: Callable[[nn.Linear], nn.Module]
    mode: str
    bits: int = 4
    dtype: torch.dtype = torch.float32
    product: float = 1e-3
    merges: str | None = None

    def __str__(self) -> str:
        return self.name

    def linear(self, bias: bool = True) -> nn.Linear:
        with torch.random.fork_rng():
            torch.manual_seed(4)
            return nn.Linear(IN, OUT, bias=bias).requires_grad_(False)

    def base(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return self.build(self.linear())

    def model(self, **config: Any) -> PeftModel:
        """One adapted layer whose blocks all turn."""
        fields = {"oft_block_size": BLOCK, "target_modules": ["layer"], **config}
        return randomize(get_peft_model(Net(self.base()), OFTConfig(**fields)))

    def x(self, rows: int = 7) -> Tensor:
        return torch.randn(rows, IN, generator=torch.Generator().manual_seed(6)).to(self.dtype)


def error(found: Tensor, expected: Tensor) -> float:
    """The relative distance."""
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def parts(model: PeftModel) -> tuple[Any, Library]:
    """The quantized layer and its library."""
    layer = model.base_model.model.layer.get_base_layer()
    library = library_of(layer)
    assert library is not None
    return layer, library


def expected(model: PeftModel, weight: Tensor, bias: Tensor | None, x: Tensor, numbers: Tensor) -> Tensor:
    """The output in float64 for the weight ``(out, in)`` turned by the stored ``numbers``."""
    y = (x.double() @ dense(rotation(numbers, {}), IN)) @ weight.double().T
    return y if bias is None else y + bias.detach().double()


def numbers_of(model: PeftModel) -> Tensor:
    """The adapter's stored numbers."""
    return model.base_model.model.layer.oft_R["default"].weight


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def check_forward(subject: Subject) -> None:
    """The library's product of the turned input, in training and in evaluation."""
    model = subject.model()
    (layer, library), x = parts(model), subject.x()
    with torch.no_grad():
        model(x)  # some layers convert their scales to the dtype of the first input
    weight = library.dequantize(layer)
    assert weight.dtype == torch.float32 and weight.shape == (OUT, IN) == library.features(layer)
    # The weight is the one that was quantized: one step of `bits` numbers over about six deviations, spread evenly
    # over a step, is 6 / 2**bits / sqrt(12) of a deviation; twice that for the groups with wider numbers.
    assert error(weight, subject.linear().weight) < 2 * 6 / 2**subject.bits / 12**0.5
    wanted = expected(model, weight, library.bias(layer), x, numbers_of(model).detach().double())
    # The turned input is rounded to the activations' dtype before the library's product.
    limit = subject.product + 2 * eps(subject.dtype)
    for training in (True, False):
        with torch.no_grad():
            assert error(model.train(training)(x), wanted) < limit
    assert torch.equal(library.dequantize(layer), weight)


def check_gradients(subject: Subject) -> None:
    """To the input and to the adapter, also for small gradients, and no less after an evaluation pass."""
    model = subject.model().train()
    (layer, library), numbers = parts(model), numbers_of(model)
    with torch.no_grad():
        model(subject.x())  # see check_forward
    weight, bias = library.dequantize(layer), library.bias(layer)
    g = torch.randn(7, OUT, generator=torch.Generator().manual_seed(7))
    for after_evaluation in (False, True):
        if after_evaluation:
            with torch.no_grad():
                model.eval()(subject.x())
        # In evaluation with a graph too: that is how an input is optimized, and it must not pack the weight.
        for training in (False, True) if after_evaluation else (True,):
            for size in (1.0, 1e-4):
                x, leaf = subject.x().requires_grad_(True), numbers.detach().double().requires_grad_(True)
                numbers.grad = None
                y = model.train(training)(x)
                y.backward((g * size).to(y.dtype))
                dense_x = x.detach().double().requires_grad_(True)
                expected(model, weight, bias, dense_x, leaf).backward((g * size).double())
                # g, the weight, g W and the turned input are each rounded to the activations' dtype, and their
                # roundings add up along a sum like a random walk: its length is the relative error itself.
                limit = 4 * eps(subject.dtype)
                assert error(x.grad, dense_x.grad) < limit
                assert error(numbers.grad, leaf.grad) < limit


def check_merge_aware(subject: Subject) -> None:
    """Merged, the layer is bit for bit what it was evaluated as; the gradient takes the rounding for the identity."""
    model, x = subject.model().eval(), subject.x()
    with torch.no_grad():
        model(x)  # see check_forward
    (layer, library), before = parts(model), stored(model)
    if library.cannot_merge(layer) is not None:
        with pytest.raises(ConfigError, match="merge_aware for layer"):
            merge_aware(model)
        return
    assert merge_aware(model) == 1
    y = model(x).detach()
    with torch.no_grad():
        evaluated = model(x)
    # a number in the middle between two codes may fall on either side
    assert error(y, evaluated) < 1e-2
    x, numbers = x.requires_grad_(True), numbers_of(model)
    g = torch.randn(7, OUT, generator=torch.Generator().manual_seed(7)).to(y.dtype)
    model(x).backward(g)
    leaf, weight = numbers.detach().double().requires_grad_(True), library.dequantize(layer).double()
    adapted = weight @ dense(rotation(leaf, {}), IN).mT
    adapted.backward(g.double().mT @ x.detach().double())
    # g, x and their product are rounded to the activations' dtype
    assert error(numbers.grad, leaf.grad) < 8 * eps(subject.dtype)
    assert_same(stored(model), before)
    model.merge_adapter()
    with torch.no_grad():
        assert torch.equal(model(x), evaluated)
    assert error(x.grad, g.double() @ library.dequantize(layer).double()) < 1e-2
    model.unmerge_adapter()
    assert_same(stored(model), before)
    merge_aware(model, False)
    with torch.no_grad():
        assert not torch.equal(model(x), evaluated)


def check_keeps_no_weight(subject: Subject) -> None:
    """A training step saves nothing of the weight's size for its backward."""
    model, saved = subject.model().train(), []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(subject.x())
    assert saved and max(saved) < IN * OUT / 2


def stored(model: PeftModel) -> dict[str, Any]:
    """Every tensor and attribute that a merge may touch, the tensors copied."""
    layer, library = parts(model)
    kept = library.snapshot(layer)
    everything = {**kept.parameters, **kept.buffers, **kept.attributes}
    return {
        inner: part.clone() if isinstance(part, Tensor) else part
        for name, value in everything.items()
        for inner, part in _numbers(name, value)
    }


def _numbers(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A value, or the tensors that a tensor class of a library consists of."""
    if not is_traceable_wrapper_subclass(value):
        yield name, value
        return
    for inner in value.__tensor_flatten__()[0]:
        yield from _numbers(f"{name}.{inner}", getattr(value, inner))


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """The same bits under the same names."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if not isinstance(value, Tensor):
            assert found[name] == value, name
        else:
            assert found[name].dtype == value.dtype, name
            raw = [t.detach().contiguous().view(torch.uint8) if t.dim() else t for t in (found[name], value)]
            assert torch.equal(*raw), name


def check_merge(subject: Subject) -> None:
    """Quantizing the turned weight costs about what quantizing the first one did, or it is refused; no bit is lost."""
    model = subject.model().eval()
    (layer, library), x = parts(model), subject.x()
    with torch.no_grad():
        model(x)
        before, weight, y = stored(model), library.dequantize(layer), model(x)
        if subject.merges:
            with pytest.raises(MergeError) as caught:
                model.merge_adapter()
            words = str(caught.value)
            assert f"Cannot merge OFT layers when the model is {library.name} quantized" in words
            assert subject.mode in words and subject.merges in words and "dequantize=True" in words
        else:
            turned = weight @ dense(rotation(numbers_of(model).double(), {}), IN).T.float()
            first = error(weight, subject.linear().weight)
            model.merge_adapter()
            assert library.claims(layer) and layer is parts(model)[0]
            # The turned weight has the same spread; its groups have other largest numbers.
            assert error(library.dequantize(layer), turned) < 1.5 * first
            # The weight's own rounding reaches the output undiminished; the product has an error of its own.
            assert error(model(x), y) < 2 * first + 2 * subject.product + 4 * eps(subject.dtype)
            assert error(weight, turned) > 0.3  # the adapter is not a small one
            model.unmerge_adapter()
        assert_same(stored(model), before)
        assert torch.equal(model(x), y)


def check_dense(subject: Subject) -> None:
    """Merging into a plain layer is exact, and leaves no quantized layer behind."""
    model = subject.model().eval()
    layer, library = parts(model)
    turned = library.dequantize(layer) @ dense(rotation(numbers_of(model).detach().double(), {}), IN).T.float()
    bias = library.bias(layer)
    found = model.merge_and_unload(dequantize=True).layer
    assert type(found) is nn.Linear
    # A model without other weights is float32; the rotation's own rounding and the product's remain.
    assert error(found.weight, turned) < 4 * eps(found.weight.dtype)
    assert bias is None or torch.equal(found.bias.float(), bias.float())


def check_files(subject: Subject, folder: Path) -> None:
    """A saved adapter gives the same output on a layer that is quantized anew."""
    model = subject.model().eval()
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(Net(subject.base()), folder).eval()
    with torch.no_grad():
        assert torch.equal(again(subject.x()), model(subject.x()))


def check_disabled(subject: Subject) -> None:
    """Without its adapter, and unloaded, the layer gives what it gave before."""
    x, base = subject.x(), Net(subject.base()).eval()
    with torch.no_grad():
        model = subject.model().eval()
        with model.disable_adapter():
            disabled = model(x)
        # A kernel that packs its weight in evaluation rounds its scales to bfloat16; an adapted layer does not pack.
        assert error(disabled, base(x)) < subject.product + 4 * eps(torch.bfloat16) * ("aten" in subject.name)
        own = parts(model)[1].own_forward(parts(model)[0])
        # Where the library's forward is not trusted, an adapted layer has another one.
        assert error(model.unload()(x), disabled) <= (0 if own else subject.product)


CHECKS = [
    check_forward, check_gradients, check_merge_aware, check_keeps_no_weight, check_merge, check_dense, check_disabled,
]  # fmt: skip


def tiny_llama(dtype: torch.dtype) -> Any:
    """A Llama of two layers with random weights, the same numbers every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(8)
        sizes = {"vocab_size": 50, "hidden_size": IN, "intermediate_size": OUT, "max_position_embeddings": 32}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(dtype).eval()


def tokens() -> Tensor:
    return torch.randint(50, (4, 12), generator=torch.Generator().manual_seed(9))


def quantize_layers(model: Any, build: Callable[[nn.Linear], nn.Module]) -> Any:
    """Every linear layer but the head's through ``build``."""
    for key, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and key != "lm_head":
            model.set_submodule(key, build(module.float().requires_grad_(False)))
    return model


def finetune(model: Any, folder: Path | None = None) -> tuple[Any, list[float], list[float]]:
    """Adapters on q, v and down, 20 steps on one batch: the model, the losses, and the share of adapters with a
    gradient in the first step and in the one after an evaluation pass."""
    config = OFTConfig(oft_block_size=BLOCK, target_modules=["q_proj", "v_proj", "down_proj"])
    model, batch = get_peft_model(model, config), tokens()
    learning = [p for name, p in model.named_parameters() if "oft_" in name]
    assert len(learning) == 6 and {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in learning}
    optimizer, losses, shares = torch.optim.AdamW(learning, lr=3e-2), [], []
    for step in range(20):
        loss = model.train()(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if step < 2:
            shares.append(sum(p.grad is not None and bool(p.grad.any()) for p in learning) / len(learning))
            with torch.no_grad():
                model.eval()(input_ids=batch)
        optimizer.step()
    return model.eval(), losses, shares


def check_llama(quantize: Callable[[Any], Any], dtype: torch.dtype, rounding: float, folder: Path) -> None:
    """A model from its config to a saved and merged adapter, beside the same one that is not quantized."""
    (model, losses, shares), (_, wanted, _) = finetune(quantize(tiny_llama(dtype))), finetune(tiny_llama(dtype))
    assert shares == [1.0, 1.0]
    # Learned as well as without quantization: the losses differ by less than a fifth of what 20 steps gain.
    assert wanted[0] - wanted[-1] > 0.3 and abs(losses[-1] - wanted[-1]) < 0.2 * (wanted[0] - wanted[-1])
    batch = tokens()
    with torch.no_grad():
        y = model(batch).logits
        model.save_pretrained(folder)
        again = PeftModel.from_pretrained(quantize(tiny_llama(dtype)), folder).eval()
        assert torch.equal(again(batch).logits, y)
        plain = model.merge_and_unload(dequantize=True)
        assert not [key for key, module in plain.named_modules() if library_of(module)]
        # Activations that a library rounds are not rounded by a plain layer.
        assert error(plain(batch).logits, y) < rounding
