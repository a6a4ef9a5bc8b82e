"""Checks in the first training step: float32 parameters on a quantized base, and layers that get no gradient.

A residual connection keeps the loss differentiable even if a layer has no backward, so no other error would occur.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.layers.quantized_linear import QuantizedLinear
from orthotune.tuner.host_functions import serve_trainer

_WHY = {
    "not run": "the layer took no part in this forward, as an expert without tokens does not",
    "no graph": "no gradient came to its parameters: what follows in the model has no backward, or cuts the graph",
    "zero": "the gradient is zero everywhere: it has underflowed (scale the loss, or use bfloat16), or nothing depends "
    "on the layer",
}


class GradientCheck:
    """Observes the first forward and backward of ``model`` in training, then removes its hooks.

    Args:
        model: holds the adapted layers.
        callers: modules whose call is a forward of the model.

    Sharded or offloaded parameters (FSDP, DeepSpeed) are skipped. A compiled forward, and a copy of the model, are not
    observed.
    """

    def __init__(self, model: nn.Module, callers: list[nn.Module]) -> None:
        self._model: nn.Module | None = model
        self._callers: list[Any] = [
            handle
            for caller in callers
            for handle in (caller.register_forward_pre_hook(self._before), caller.register_forward_hook(self._after))
        ]
        self._release([])

    def _before(self, caller: nn.Module, _: Any) -> None:
        if torch.compiler.is_compiling() or self._model is None or not (caller.training and torch.is_grad_enabled()):
            return
        self._release(self._step)
        keep_float32(self._model)
        serve_trainer()
        # With blocks that are compiled separately, hooks on layers would recompile each: all layers then count as run.
        in_parts = any(_is_compiled(module) for module in self._model.modules())
        for name, module in self._model.named_modules():
            if not isinstance(module, OFTLayer) or module.merged or module.disable_adapters:
                continue
            names = [adapter for adapter in module.active_adapters if adapter in module.oft_settings]
            learning = [p for adapter in names for p in module.stored(adapter) if p.requires_grad]
            if learning and all(type(p) is nn.Parameter and p.numel() for p in learning):
                self._watching[name] = (module, learning)
                if in_parts:
                    self._ran.add(id(module))
                else:
                    self._step.append(module.register_forward_hook(self._note_run))
                self._step += [p.register_hook(self._note_gradient(p)) for p in learning]

    def stop(self) -> None:
        """Remove all hooks: the adapters are removed from the model."""
        self._release([*self._step, *self._callers])
        self._model = None

    def _note_run(self, module: nn.Module, *_: Any) -> None:
        self._ran.add(id(module))

    def _note_gradient(self, parameter: nn.Parameter) -> Callable[[Tensor | None], None]:
        def came(grad: Tensor | None) -> None:
            if grad is None:  # computed in a group, but not used
                return
            self._came[id(parameter)] = self._came.get(id(parameter), False) or bool(grad.any())

        return came

    def _after(self, model: nn.Module, _: Any, output: Any) -> None:
        if not self._watching:
            return
        ends = [tensor for tensor in _tensors(output) if tensor.requires_grad]
        self._step += [tensor.register_hook(self._at_backward) for tensor in ends]

    def _at_backward(self, _: Tensor) -> None:
        if self._watching and not self._came:
            # Called when this backward has finished.
            torch.autograd.Variable._execution_engine.queue_callback(self._report)

    def _report(self) -> None:
        watched, ran, came = self._watching, self._ran, self._came
        if not watched:
            return
        self._release([*self._step, *self._callers])
        found: dict[str, list[str]] = {}
        for name, (module, parameters) in watched.items():
            if any(came.get(id(p), False) for p in parameters):
                continue
            seen = any(id(p) in came for p in parameters)
            why = "not run" if id(module) not in ran else "zero" if seen else "no graph"
            found.setdefault(why, []).append(name)
        for why, layers in found.items():
            warnings.warn(
                f"{len(layers)} of {len(watched)} adapted layers got no gradient in the first training step: "
                f"{shortened(layers)}. Because {_WHY[why]}.",
                stacklevel=2,
            )

    def _release(self, handles: list[Any]) -> None:
        for handle in handles:
            handle.remove()
        self._watching: dict[str, tuple[OFTLayer, list[nn.Parameter]]] = {}
        self._ran: set[int] = set()
        self._came: dict[int, bool] = {}
        self._step: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {"_model": None, "_watching": {}, "_step": [], "_callers": []}


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or isinstance(module, torch._dynamo.OptimizedModule)


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)


def keep_float32(model: nn.Module) -> int:
    """Convert adapter parameters on quantized layers back to float32, and return their number.

    TRL casts all trained parameters on a 4-bit or 8-bit base to bfloat16, as in the QLoRA paper. The parameters of a
    rotation are near 0.1, where bfloat16 has steps of 4e-4: most updates would be rounded away.
    """
    changed = 0
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            for name in module.oft_settings:
                for parameter in module.stored(name):
                    if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                        parameter.data = parameter.data.float()
                        changed += 1
    return changed
