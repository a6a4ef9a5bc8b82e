"""Weights stored as ordinary floating-point tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orthotune.errors import UnsupportedLayerError

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require_plain(weight: Tensor, layer: str, module: nn.Module, name: str = "weight") -> None:
    """Refuse a weight whose values cannot be read directly: a quantized or an unknown tensor type.

    Raises:
        UnsupportedLayerError: naming the layer, its class and what was found; also for a weight that is computed from
            others (``torch.nn.utils.parametrize``), which a merge could not write.

    Example:
        >>> require_plain(torch.zeros(2, 2), "q_proj", nn.Linear(2, 2))
    """
    computed = getattr(module, "parametrizations", None)
    if isinstance(computed, nn.ModuleDict):
        raise UnsupportedLayerError(
            f"layer '{layer}' ({type(module).__name__})",
            got=f"a parametrized {', '.join(computed)}, such as weight_norm makes",
            needed="a weight of its own",
            do="Remove the parametrization first (torch.nn.utils.parametrize.remove_parametrizations)",
        )
    if name not in module._parameters:
        hooks = sorted({type(hook).__name__ for hook in module._forward_pre_hooks.values()})
        raise UnsupportedLayerError(
            f"layer '{layer}' ({type(module).__name__})",
            got=f"a {name} that is computed before every forward ({', '.join(hooks) or 'no parameter'}), as hooks of "
            "the old weight_norm, of spectral_norm and prune do",
            needed="a weight of its own, which a merge can write",
            do="Make it permanent first (torch.nn.utils.remove_weight_norm, remove_spectral_norm, prune.remove)",
        )
    if hasattr(weight, "to_local"):
        raise UnsupportedLayerError(
            f"layer '{layer}' ({type(module).__name__})",
            got=f"a weight that is spread over processes, {getattr(weight, 'placements', '')}",
            needed="an entire weight when the adapter is added",
            do="Add the adapter first and shard the model then (FSDP2), or merge the adapter into the files "
            "(`orthotune merge --stream`) and load those with the tensor parallel plan",
        )
    if type(weight) in (Tensor, nn.Parameter) and type(weight.data) is Tensor and weight.dtype in FLOATS:
        return
    raise UnsupportedLayerError(
        f"layer '{layer}' ({type(module).__module__}.{type(module).__name__})",
        got=f"a weight of type {type(weight).__name__} and dtype {weight.dtype}",
        needed="a plain float32, float64, bfloat16 or float16 weight",
        do="Load the base model without quantization, or exclude the layer",
    )
