"""Quantize the linear layers of a loaded network: what pipelines of images need, whose parts load in many ways.

diffusers' own loading with bitsandbytes requires a GPU; the libraries themselves quantize a loaded layer on any device.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError

#: name -> (module that quantizes, extra that installs the module)
IN_PLACE: dict[str, tuple[str, str]] = {
    "nf4": ("bitsandbytes", "quant-bnb"),
    "int8": ("torchao", "quant-torchao"),
    "fp8": ("torchao", "quant-torchao"),
}


def check_word(word: str) -> None:
    """Check that a quantization is known and its library is installed.

    Args:
        word: a key of :data:`IN_PLACE`.

    Raises:
        RecipeError: otherwise.
    """
    if word not in IN_PLACE:
        raise RecipeError(f"quantization={word} for an image model", needed=f"one of {', '.join(IN_PLACE)}")
    module, extra = IN_PLACE[word]
    if find_spec(module) is None:
        raise RecipeError(
            f"quantization={word}", got=f"{module} is not installed",
            do=f"Install it with: pip install 'orthotune[{extra}]'",
        )  # fmt: skip


@torch.no_grad()
def quantize_in_place(network: nn.Module, word: str) -> int:
    """Quantize the linear layers in the blocks of a network, those inside of a list of modules.

    What is not in a block, as the first and last layers and embeddings, stays as it is, as do convolutions and norms,
    and for nf4 layers whose inputs are no multiple of 64.

    Args:
        network: with frozen weights, changed in place.
        word: ``nf4`` (bitsandbytes, blocks of 64, scales quantized), ``int8`` or ``fp8`` (torchao, weights only: a
            scale per row).

    Returns:
        The number of quantized layers.

    Raises:
        RecipeError: an unknown word, or a library that is not installed.

    Example:
        >>> quantize_in_place(nn.ModuleList([nn.Linear(64, 64)]), "nf4")  # doctest: +SKIP
        1
    """
    check_word(word)
    found = list(_layers(network, word))
    replace: Callable[[nn.Linear], nn.Module] = _nf4 if word == "nf4" else _torchao(word)
    for name in found:
        parent, _, own = name.rpartition(".")
        layer: Any = network.get_submodule(name)
        setattr(network.get_submodule(parent), own, replace(layer))
    return len(found)


def quantized_bytes(network: nn.Module, word: str) -> dict[int, int]:
    """What :func:`quantize_in_place` would make of the weights of a network, without doing it.

    Args:
        network: not quantized.
        word: a key of :data:`IN_PLACE`.

    Returns:
        ``id`` of a weight -> bytes of what replaces it.

    Example:
        >>> blocks = nn.ModuleList([nn.Linear(64, 32)])
        >>> list(quantized_bytes(blocks, "nf4").values())
        [1060]
    """
    return {id(layer.weight): _BYTES[word](layer.weight) for layer in _layers(network, word).values()}


def _nf4_bytes(weight: Tensor) -> int:
    blocks = -(-weight.numel() // 64)  # each with a scale of a byte, and 256 of these with one in float32
    return -(-weight.numel() // 2) + blocks + 4 * -(-blocks // 256)


#: name -> bytes of a weight, as the library stores it
_BYTES: dict[str, Callable[[Tensor], int]] = {
    "nf4": _nf4_bytes,
    "int8": lambda weight: weight.numel() + 5 * weight.shape[0],  # a float32 scale and an int8 zero for each row
    "fp8": lambda weight: weight.numel() + 4 * weight.shape[0],
}


def _layers(network: nn.Module, word: str) -> dict[str, nn.Linear]:
    """The layers that are quantized, by name: those in blocks; for nf4 only with rows of complete blocks of 64."""
    linear = {name: module for name, module in network.named_modules() if type(module) is nn.Linear}
    return {name: module for name, module in linear.items()
            if _in_block(network, name) and (word != "nf4" or module.in_features % 64 == 0)}  # fmt: skip


def _in_block(network: nn.Module, name: str) -> bool:
    parts = name.split(".")
    above = (network.get_submodule(".".join(parts[:count])) for count in range(len(parts)))
    return any(isinstance(module, nn.ModuleList) for module in above)


def _nf4(layer: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = layer.weight
    made = Linear4bit(
        layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=weight.dtype,
        compress_statistics=True, quant_type="nf4", device="meta",
    )  # fmt: skip
    made.weight = Params4bit(
        weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
    ).to(weight.device)
    if layer.bias is not None:
        made.bias = layer.bias
    return made.requires_grad_(False)


def _torchao(word: str) -> Callable[[nn.Linear], nn.Module]:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config: Any = Int8WeightOnlyConfig() if word == "int8" else Float8WeightOnlyConfig()

    def replace(layer: nn.Linear) -> nn.Module:
        quantize_(layer, config)
        return layer.requires_grad_(False)

    return replace
