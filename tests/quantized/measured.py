"""One line of the table of ``docs/evidence/quantized.md``: what a library's layer does under an adapter, in numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from orthotune.errors import MergeError
from tests.quantized.layer_checks import (
    IN,
    OUT,
    Subject,
    assert_same,
    error,
    expected,
    finetune,
    numbers_of,
    parts,
    quantize_layers,
    stored,
    tiny_llama,
)
from tests.support.contract_reference import dense, rotation


def measure(name: str, subject: Subject) -> dict[str, Any]:
    """Relative errors (Frobenius) on a layer 64 -> 96, and a tiny Llama end to end."""
    model = subject.model()
    (layer, library), numbers = parts(model), numbers_of(model)
    with torch.no_grad():
        model.train()(subject.x())
    weight, bias, mode = library.dequantize(layer), library.bias(layer), library.mode(layer)
    g = torch.randn(7, OUT, generator=torch.Generator().manual_seed(7))

    def step() -> tuple[float, float, float]:
        x, leaf = subject.x().requires_grad_(True), numbers.detach().double().requires_grad_(True)
        numbers.grad = None
        y = model.train()(x)
        y.backward(g.to(y.dtype))
        wide = x.detach().double().requires_grad_(True)
        wanted = expected(model, weight, bias, wide, leaf)
        wanted.backward(g.double())
        if x.grad is None or numbers.grad is None:
            return error(y, wanted), float("nan"), float("nan")
        return error(y, wanted), error(x.grad, wide.grad), error(numbers.grad, leaf.grad)

    forward, to_x, to_adapter = step()
    with torch.no_grad():
        model.eval()(subject.x())
    _, to_x_after, to_adapter_after = step()
    turned = weight @ dense(rotation(numbers.detach().double(), {}), IN).T.float()
    model.eval()
    merged, same_bits, before = None, None, stored(model)
    try:
        model.merge_adapter()
    except MergeError:
        pass
    else:
        merged = error(library.dequantize(layer), turned)
        model.unmerge_adapter()
        assert_same(stored(model), before)
        same_bits = True
    made = model.merge_and_unload(dequantize=True).layer
    _, losses, shares = finetune(quantize_layers(tiny_llama(subject.dtype), subject.build))
    plain = float_losses(subject.dtype)
    return {
        "library": library.name,
        "layer": name.partition(": ")[2],
        "mode": mode,
        "dtype": str(subject.dtype).removeprefix("torch."),
        "forward": forward,
        "gradient_x": to_x,
        "gradient_adapter": to_adapter,
        "gradient_x_after_eval": to_x_after,
        "gradient_adapter_after_eval": to_adapter_after,
        "own": error(weight, subject.linear().weight),
        "merged": merged,
        "unmerged_bits": same_bits,
        "dense": error(made.weight, turned),
        "share": min(shares),
        "loss_before": losses[0],
        "loss": losses[-1],
        "float_loss_before": plain[0],
        "float_loss": plain[-1],
    }


@cache
def float_losses(dtype: torch.dtype) -> list[float]:
    """The losses of the same steps on the base that is not quantized."""
    return finetune(tiny_llama(dtype))[1]
