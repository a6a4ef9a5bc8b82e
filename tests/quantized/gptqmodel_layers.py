"""Layers of gptqmodel without a calibration: a float layer's weight rounded to the nearest codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaForCausalLM

from tests.quantized.layer_checks import finetune, quantize_layers, tiny_llama, tokens

pytest.importorskip("gptqmodel")

from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.nn_modules.qlinear.torch_aten_kernel import TorchAtenLinear
from gptqmodel.nn_modules.qlinear.torch_aten_kernel_awq import TorchAtenAwqLinear
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
from gptqmodel.nn_modules.qlinear.torch_fused import TorchFusedLinear
from gptqmodel.nn_modules.qlinear.torch_fused_awq import TorchFusedAwqLinear

GPTQ = {"torch": TorchLinear, "aten": TorchAtenLinear, "fused": TorchFusedLinear}
AWQ = {"torch": AwqTorchLinear, "aten": TorchAtenAwqLinear, "fused": TorchFusedAwqLinear}


def grid(weight: torch.Tensor, bits: int, group: int, sym: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points ``(out, groups)`` from the smallest and the largest number of every group."""
    runs = weight.detach().float().view(len(weight), -1, group)
    if sym:
        scales = (runs.abs().amax(-1) / (2 ** (bits - 1) - 1)).half().float()
        return scales, torch.full_like(scales, 2 ** (bits - 1))
    low, high = runs.amin(-1).clamp(max=0), runs.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**bits - 1)).half().float()
    return scales, (-low / scales).round()


def _empty(
    kernel: type[Any], linear: nn.Linear, bits: int, group: int, desc_act: bool = False, sym: bool = False
) -> Any:
    return kernel(
        bits=bits,
        group_size=group,
        sym=sym,
        desc_act=desc_act,
        in_features=linear.in_features,
        out_features=linear.out_features,
        bias=linear.bias is not None,
        register_buffers=True,
    )


def gptq(
    linear: nn.Linear, kernel: str = "torch", bits: int = 4, group: int = 32, shuffle: bool = False, sym: bool = False
) -> Any:
    """A GPTQ layer; with ``shuffle`` its inputs are in groups in another order, as ``desc_act`` gives."""
    layer = _empty(GPTQ[kernel], linear, bits, group, shuffle, sym)
    weight, order = linear.weight.detach(), torch.arange(linear.in_features) // group
    if shuffle:
        places = torch.randperm(linear.in_features, generator=torch.Generator().manual_seed(0))
        scales, zeros = grid(weight[:, places], bits, group)
        order = torch.empty_like(order).scatter_(0, places, order)
    else:
        scales, zeros = grid(weight, bits, group, sym)
    layer.pack_original(linear, scales, zeros, order.int())
    layer.qzero_format(format=2)
    return _ready(layer)


def awq(linear: nn.Linear, kernel: str = "torch", bits: int = 4, group: int = 32) -> Any:
    """An AWQ layer, packed by the library's own torch kernel, whose buffers the other kernel reads too."""
    scales, zeros = grid(linear.weight, bits, group)
    # Its packing does not keep codes in their range: a number outside would change its neighbour.
    weight = linear.weight.detach().view(linear.out_features, -1, group)
    low, high = -zeros * scales, (2**bits - 1 - zeros) * scales
    inside = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    inside.weight.data = torch.maximum(torch.minimum(weight, high[..., None]), low[..., None]).view_as(linear.weight)
    if linear.bias is not None:
        inside.bias.data = linear.bias.detach().clone()
    made = _empty(AwqTorchLinear, linear, bits, group)
    made.pack(inside.requires_grad_(False), scales.half(), zeros.half())
    if kernel == "torch":
        return _ready(made)
    layer = _empty(AWQ[kernel], linear, bits, group)
    layer.load_state_dict(made.state_dict())
    return _ready(layer)


def packed(layer: Any) -> Any:
    """``layer`` after an evaluation pass that came before any adapter: some kernels pack their weight in it."""
    with torch.no_grad():
        layer.eval()(torch.zeros(2, layer.in_features))
    assert layer.linear_mode is not None
    return layer


def _ready(layer: Any) -> Any:
    layer.optimized = True  # what would compile it
    layer.post_init()
    return layer.eval()


def load(build: Callable[[nn.Linear], Any], config: Any, folder: Path) -> Any:
    """A model of such layers, saved as a checkpoint and loaded by transformers, which chooses the kernel."""
    model = quantize_layers(tiny_llama(torch.float16), build)
    said = model.config.to_dict() | {"quantization_config": config.to_dict(), "dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(said, default=str))
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float16)


def finetune_loaded(model: Any, kernel: str) -> Any:
    """Finetunes a loaded model, all adapters with a gradient before and after evaluation, and gives it back."""
    projection = model.model.layers[0].self_attn.q_proj
    assert type(projection).__name__ == kernel
    model, losses, shares = finetune(model)
    assert shares == [1.0, 1.0] and losses[-1] < losses[0] - 0.3
    assert model(tokens()).logits.isfinite().all()
    return model
