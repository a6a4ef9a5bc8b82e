"""What a quantized library states about its layers, so that a rotation can be trained on them and merged into them.

A library's file never imports the library at its top: a layer is recognised by the path of its class, and whoever
holds such a layer has imported the library already. Nothing here sees an adapter.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Library:
    """How one library stores the weight ``(out, in)`` of a linear layer. Stateless; one instance serves all layers.

    A library states at least ``name``, ``classes``, :meth:`mode` and :meth:`dequantize`; one that can be merged into
    states :meth:`requantize` and :meth:`rounding` as well, and sets ``no_merge`` to None.
    """

    #: how the library is called in messages and tables
    name: str = ""
    #: paths of the classes that are its layers, as ``"package.module.Class"``; subclasses are claimed too
    classes: tuple[str, ...] = ()
    #: plain attributes of a layer that :meth:`requantize` replaces, beside its parameters and buffers
    replaced: tuple[str, ...] = ()
    #: why an adapter is not merged into the quantized weight, or None when it is
    no_merge: str | None = "the library has no way to quantize a new weight"

    def claims(self, module: nn.Module) -> bool:
        """Whether ``module`` is a layer of this library; imports nothing."""
        return any(path in self.classes for path in class_paths(type(module)))

    def mode(self, module: nn.Module) -> str:
        """A short description of the quantization, such as ``"nf4, double quantization"``."""
        raise NotImplementedError

    def features(self, module: nn.Module) -> tuple[int, int]:
        """``(out, in)`` without reading the weight."""
        return int(module.out_features), int(module.in_features)  # type: ignore[arg-type]

    def device(self, module: nn.Module) -> torch.device:
        """Where the stored weight is."""
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            return tensor.device
        return torch.device("cpu")

    def bias(self, module: nn.Module) -> Tensor | None:
        """The bias ``(out,)`` that the layer adds, or None."""
        bias = getattr(module, "bias", None)
        return bias if isinstance(bias, Tensor) else None

    def prepare(self, module: nn.Module) -> None:
        """Called once when an adapter is put around ``module``, and again on loading one: switch off what would
        rewrite the stored weight in an evaluation pass, freeze what must not train. Makes no tensors, changes no
        output, does nothing the second time."""

    def cannot_merge(self, module: nn.Module) -> str | None:
        """Why an adapter is not merged into the quantized weight of this layer, or None when it is."""
        return self.no_merge

    def own_forward(self, module: nn.Module) -> bool:
        """Whether the library's forward is correct; if False, ``x dequantize(W)^T + b`` is computed instead."""
        return True

    def own_backward(self, module: nn.Module) -> bool:
        """Whether the library's own forward gives the right gradient to its input, in training and after evaluation.

        False: the layer is run without a graph and the gradient is ``g @ dequantize(module)``.
        """
        return False

    def dequantize(self, module: nn.Module) -> Tensor:
        """The weight that the layer multiplies with: a new float32 tensor ``(out, in)``, never an alias.

        Right also after an evaluation pass: a weight that was packed for it is unpacked here first.
        """
        raise NotImplementedError

    def requantize(self, module: nn.Module, weight: Tensor) -> None:
        """Store ``weight`` ``(out, in)``, float32, in this very module, in its own mode.

        Puts new tensors in place of the old ones and never writes into them: a snapshot holds on to the old ones.
        The caller checks the result against :meth:`rounding` and restores the snapshot when it is wrong.
        """
        raise NotImplementedError(self.no_merge)

    def rounding(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The largest distance of each number of ``weight`` ``(out, in)`` from the nearest one that can be stored.

        Broadcasts to ``(out, in)``; ``quantized/rounding.py`` has the usual grids. It comes from the weight and the
        grid alone, not from what :meth:`requantize` did, so that it can tell whether that was right.
        """
        raise NotImplementedError(self.no_merge)

    def snapshot(self, module: nn.Module) -> Snapshot:
        """The stored weight as it is now, by reference."""
        return Snapshot(
            dict(module._parameters), dict(module._buffers), {name: getattr(module, name) for name in self.replaced}
        )

    def restore(self, module: nn.Module, snapshot: Snapshot) -> None:
        """Put a snapshot back, bit for bit."""
        module._parameters.clear()
        module._parameters.update(snapshot.parameters)
        module._buffers.clear()
        module._buffers.update(snapshot.buffers)
        for name, value in snapshot.attributes.items():
            setattr(module, name, value)


class Snapshot:
    """The tensors and attributes of one layer at one time."""

    def __init__(self, parameters: dict[str, Any], buffers: dict[str, Any], attributes: dict[str, Any]) -> None:
        self.parameters, self.buffers, self.attributes = parameters, buffers, attributes


def class_paths(kind: type) -> list[str]:
    """The paths of a class and of all that it inherits from.

    Example:
        >>> class_paths(nn.Linear)[:2]
        ['torch.nn.modules.linear.Linear', 'torch.nn.modules.module.Module']
    """
    return [f"{cls.__module__}.{cls.__qualname__}" for cls in kind.__mro__]
