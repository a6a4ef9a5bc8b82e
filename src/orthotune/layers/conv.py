"""Convolutions: their signals are rotated where a rotation maps channels to channels, otherwise their kernel is.

A rotation of the output's channels is a product after the convolution, one of the input's channels a product before it,
whatever stride, padding, dilation or overlap the patches have. Neither needs the gradient of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose1d, conv_transpose2d, conv_transpose3d, pad

from orthotune.kernels.autograd import looked_through
from orthotune.kernels.choose import kernel_is_rotated, patches_are_rotated
from orthotune.kernels.rotate import rotate_channels
from orthotune.kernels.rotate_patches import Geometry, convolve_patches
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import mixed_batch
from orthotune.layers.offloaded import hosted
from orthotune.layers.parametrization.memo import Memo
from orthotune.layers.plan import INPUT, KERNEL, LARGE, PATCHES, SIDES, Plan
from orthotune.layers.settings import LayerSettings
from orthotune.rotation.operator import Operator

_OWN = (nn.Conv1d._conv_forward, nn.Conv2d._conv_forward, nn.Conv3d._conv_forward)
_TRANSPOSED: tuple[Any, ...] = (conv_transpose1d, conv_transpose2d, conv_transpose3d)
_HOSTED = Plan("call", "the host of the module brings its weight")


class Conv(OFTLayer):
    """``nn.Conv1d/2d/3d`` with any kernel, stride, padding mode, dilation and groups.

    The weight ``(out, in / groups, *kernel)`` is a matrix ``(out, fan_in)`` with ``fan_in`` in the order (in, kernel)
    that PEFT's files use. ``side="in"`` rotates ``fan_in``, the same way in every group; with ``conv="channels"`` it
    rotates ``in / groups``, the same way in every group and at every point of the kernel. ``side="out"`` rotates the
    output channels. For a kernel of one point the two layouts of ``side="in"`` are the same.
    """

    plain_forwards: ClassVar[tuple[Callable[..., Any], ...]] = (
        nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward,
    )  # fmt: skip

    @property
    def beyond_peft(self) -> str | None:  # type: ignore[override]
        """PEFT folds overlapping patches: its un-merged forward is another map unless the kernel is 1x1."""
        base = self.get_base_layer()
        return None if isinstance(base, nn.Conv2d) and set(base.kernel_size) == {1} else "convolutions"

    @classmethod
    def check_frozen(cls, settings: LayerSettings) -> None:
        """Convolutions hold frozen maps."""

    @property
    def in_features(self) -> int:
        """The base's ``in_channels``."""
        return int(self.get_base_layer().in_channels)

    @property
    def out_features(self) -> int:
        """The base's ``out_channels``."""
        return int(self.get_base_layer().out_channels)

    @property
    def points(self) -> int:
        return math.prod(self.get_base_layer().kernel_size)

    def no_lora_form(self, added: bool = False) -> str | None:
        base = self.get_base_layer()
        kind = f"a {type(base).__name__} with"
        if base.groups > 1:
            return f"{kind} groups={base.groups}, whose kernel is no product of two convolutions"
        if type(base).forward not in self.plain_forwards or type(base)._conv_forward not in _OWN:
            return f"a {type(base).__name__}, which computes with more than the sum of its weight and a change"
        if added:
            return None
        # PEFT makes the convolutions of a LoRA without these: it would be another map.
        if any(step > 1 and size > 1 for step, size in zip(base.dilation, base.kernel_size, strict=True)):
            return f"{kind} dilation={base.dilation}, which the convolutions of PEFT's LoRA do not have"
        if base.padding_mode != "zeros" and any(base._reversed_padding_repeated_twice):
            return f"{kind} padding_mode='{base.padding_mode}', which the convolutions of PEFT's LoRA do not have"
        return None

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.get_base_layer().weight.flatten(1)}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": matrices[""].view(self.get_base_layer().weight.shape)}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (batch := mixed_batch(self, kwargs, x)) is not None:
            here = [name for name in batch.rows if name in self.slots]
            return batch.by_adapter(x, here, lambda names, rows: self._under(names, rows, x, args, kwargs))
        path = self.path(x)
        if path == "base":
            return self.base_layer(x, *args, **kwargs)
        if path == "call":
            return self.call((x, *args), kwargs)
        return self._plainly(path, list(self.in_use.adapters), x, args, kwargs)

    def _under(self, names: list[str], x: Tensor, batch: Tensor, args: Any, kwargs: Any) -> Any:
        """Rows of a mixed batch that run under one adapter, or none.

        The path is that of the complete batch, so that a row has the bits that it has beside rows of its own adapter.
        """
        if not names:
            return self.base_layer(x, *args, **kwargs)
        frozen = any(self.frozen_map(name) is not None for name in names)
        path = "call" if frozen or self.opaque() is not None else self._path_of(names, batch).path
        if path == "call":
            return self.call((x, *args), kwargs, tuple(names))
        return self._plainly(path, names, x, args, kwargs)

    def _plainly(self, path: str, names: list[str], x: Tensor, args: Any, kwargs: Any) -> Any:
        """The path ``input``, ``sides``, ``weight`` or ``patches`` of a base that is known to be plain."""
        base = self.base_layer
        if path == "weight":
            quick = not torch.is_grad_enabled() and not self.training and not looked_through()
            weight = self.rotated_matrices(names, rounded=quick)["weight"].to(base.weight.dtype)
            return self._convolved(x, weight, base.bias, args, kwargs)
        if path == "patches":
            return self._by_patches(names[0], x)
        for name in names:
            if self.slots[name].settings.spec.side == "in":
                x = self._rotated_channels(x, self.oft_R[name](), base.groups)
        if path == "input":
            return base(x, *args, **kwargs)
        y = self._convolved(x, base.weight, None, args, kwargs)
        for name in names:
            if self.slots[name].settings.spec.side == "out":
                y = self._rotated_channels(y, self.oft_R[name]().mT, 1)
            scale = self.magnitude(name)
            y = y if scale is None else y * self._beside(scale.to(y.dtype))
        return self._with_bias(y)

    def _rotated_channels(self, x: Tensor, R: Tensor | Operator, groups: int) -> Tensor:
        """The channels of a signal, of each group the same way."""
        spatial = len(self.get_base_layer().kernel_size)
        if groups == 1:
            return rotate_channels(x, R, spatial)
        channels = x.dim() - spatial - 1
        return rotate_channels(x.unflatten(channels, (groups, -1)), R, spatial).flatten(channels, channels + 1)

    def _beside(self, values: Tensor) -> Tensor:
        """One value for each channel, in a shape that broadcasts over a signal."""
        return values.view(-1, *(1 for _ in self.get_base_layer().kernel_size))

    def _with_bias(self, y: Tensor) -> Tensor:
        bias = self.base_layer.bias
        return y if bias is None else y + self._beside(bias.to(y.dtype))

    def _by_patches(self, name: str, x: Tensor) -> Tensor:
        """The convolution of rotated patches."""
        base, R, scale = self.base_layer, self.oft_R[name](), self.magnitude(name)
        # A look at the values would wait for any device but the processor: rounding may differ there.
        seen = scale is None and Memo.can_hold(R) and not torch.compiler.is_compiling()
        fresh = seen and torch.equal(R, torch.eye(R.shape[-1], dtype=R.dtype).expand_as(R))
        if fresh and (base.bias is None or not base.bias.requires_grad):
            with torch.no_grad():  # a fresh adapter changes no bit: the sums run in the base's order
                y = base(x)
            return self._of_patches(x, R, y)
        y = self._of_patches(x, R)
        return self._with_bias(y if scale is None else y * self._beside(scale.to(y.dtype)))

    def _of_patches(self, x: Tensor, R: Tensor, known: Tensor | None = None) -> Tensor:
        """The convolution without the bias, or its ``known`` result with a gradient."""
        base = self.base_layer
        single = x.dim() == len(base.kernel_size) + 1
        mode = "constant" if base.padding_mode == "zeros" else base.padding_mode
        padded = pad(x[None] if single else x, base._reversed_padding_repeated_twice, mode=mode)
        shape = Geometry(base.kernel_size, base.stride, base.dilation, base.groups)
        known = known[None] if single and known is not None else known
        y = convolve_patches(padded, base.weight, R, shape, known)
        return y[0] if single else y

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, args: Any, kwargs: Any) -> Tensor:
        """The base's own function with another weight, and a bias or none."""
        found: Tensor = self.base_layer._conv_forward(x, weight, bias)
        return found

    def opaque(self) -> str | None:
        reason = super().opaque()
        if reason is None and type(self.base_layer)._conv_forward not in _OWN:
            reason = f"{type(self.base_layer).__name__} has a convolution of its own"
        return reason

    # Which way is the cheapest of those that mean the same.

    def own_path(self, x: Tensor | None) -> Plan:
        """Signals are rotated where every adapter maps channels to channels and that is less work, else the kernel."""
        return self._path_of(list(self.in_use.adapters), x)

    def _path_of(self, names: list[str], x: Tensor | None) -> Plan:
        if all(self._maps_channels(name) for name in names):
            specs = [self.slots[name].settings.spec for name in names]
            outward = any(spec.side == "out" for spec in specs) or any(name in self.oft_magnitude for name in names)
            if not hosted(self.base_layer):
                return LARGE if self._kernel_is_less(names, x) else SIDES if outward else INPUT
            return _HOSTED if outward else INPUT
        if hosted(self.base_layer):
            return _HOSTED
        return PATCHES if x is not None and self._patches_are_less(names, x) else KERNEL

    def _maps_channels(self, name: str) -> bool:
        """Whether an adapter acts on the channels of a signal, wherever in the image they are.

        Padding is no matter: rotated zeros are zeros, and what other padding modes copy is rotated alike. The output
        channels of two groups cannot be mixed in the signal, only in the kernel: each sees its own inputs there.
        """
        spec, base = self.slots[name].settings.spec, self.get_base_layer()
        if spec.side == "in":
            return self._points_of(spec) == self.points
        within = spec.transform == "blocks" and base.out_channels // base.groups % spec.block_size == 0
        return base.groups == 1 or bool(within)

    def _kernel_is_less(self, names: list[str], x: Tensor | None) -> bool:
        if x is None or torch.is_grad_enabled() or torch.compiler.is_compiling() or looked_through():
            return False  # compiled code must not depend on the size of an image
        kernel = self.shapes()[""].numel()
        inputs, outputs = x.numel(), self._outputs_for(x)
        signals = kernels = 0
        for name in names:
            spec, work = self.slots[name].settings.spec, self._work(name)
            signals += work * (inputs if spec.side == "in" else outputs)
            kernels += work * kernel
        return kernel_is_rotated(signals, kernels, gradients=False)

    def _patches_are_less(self, names: list[str], x: Tensor) -> bool:
        if len(names) != 1 or torch.compiler.is_compiling() or looked_through() or not x.numel():
            return False
        base, spec = self.get_base_layer(), self.slots[names[0]].settings.spec
        if spec.side == "out" or spec.transform != "blocks":
            return False
        positions = self._outputs_for(x) // base.out_channels
        # The mode, not whether gradients are on: a forward that is repeated for checkpointing takes the same path.
        trains = self.training and x.dtype is torch.float32 and not torch.is_autocast_enabled(x.device.type)
        return patches_are_rotated(x.device.type, positions * base.groups, base.out_channels, trains)

    def _work(self, name: str) -> int:
        """Multiplications for one number that an adapter rotates: those of one block's row, or of the factors."""
        rotation = self.rotations(name)[""]
        spec = self.slots[name].settings.spec
        return spec.block_size if spec.transform == "blocks" else max(1, rotation.weight.shape[0])

    def _outputs_for(self, x: Tensor) -> int:
        """About how many numbers the output for ``x`` has; paddings are not counted."""
        base = self.get_base_layer()
        return x.numel() // base.in_channels * base.out_channels // math.prod(base.stride)


class TransposedConv(Conv):
    """``nn.ConvTranspose1d/2d/3d``, also with groups, strides, dilation and output padding.

    The weight ``(in, out / groups, *kernel)`` is the matrix ``(out, fan_in)`` of the convolution that has it as its
    gradient, with ``fan_in = in / groups * kernel``.
    """

    plain_forwards = (nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward, nn.ConvTranspose3d.forward)
    beyond_peft = "transposed convolutions"

    def no_lora_form(self, added: bool = False) -> str:
        return f"a {type(self.get_base_layer()).__name__}, and PEFT's LoRA has no transposed convolutions"

    def natural(self, weight: Tensor) -> Tensor:
        return outputs_first(weight, self.get_base_layer().groups)

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.natural(self.get_base_layer().weight).flatten(1)}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        base = self.get_base_layer()
        kernels = matrices[""].view(base.out_channels, -1, *base.kernel_size)
        return {"weight": self.natural(kernels)}

    def shapes(self) -> dict[str, torch.Size]:
        base = self.get_base_layer()
        return {"": torch.Size((base.out_channels, base.in_channels // base.groups * self.points))}

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, args: Any, kwargs: Any) -> Tensor:
        base = self.base_layer
        spatial = len(base.kernel_size)
        size = args[0] if args else kwargs.get("output_size")
        padding = base._output_padding(x, size, base.stride, base.padding, base.kernel_size, spatial, base.dilation)
        found: Tensor = _TRANSPOSED[spatial - 1](
            x, weight, bias, base.stride, base.padding, padding, base.groups, base.dilation
        )
        return found

    def _patches_are_less(self, names: list[str], x: Tensor) -> bool:
        return False  # its patches are those of the output

    def opaque(self) -> str | None:
        return OFTLayer.opaque(self)

    def _outputs_for(self, x: Tensor) -> int:
        base = self.get_base_layer()
        return x.numel() // base.in_channels * base.out_channels * math.prod(base.stride)


def outputs_first(weight: Tensor, groups: int) -> Tensor:
    """The weight ``(in, out / groups, *kernel)`` of a transposed convolution as ``(out, in / groups, *kernel)``.

    Applied twice, it gives the weight back.

    Example:
        >>> outputs_first(torch.zeros(6, 5, 3), groups=2).shape
        torch.Size([10, 3, 3])
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
