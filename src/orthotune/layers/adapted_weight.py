"""A weight as an adapted layer computes with it, for code that reads it past the layer's forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from orthotune.errors import OrthotuneError


class AdaptedWeight(Tensor):
    """The weight of an adapted layer, computed lazily at the first use of its values.

    Its dtype, shape and device are known without computing anything; every operation on it sees the adapted values
    and passes a gradient to the adapter. It cannot be written into, because the next reader would not see the write.
    """

    _compute: Callable[[], Tensor]
    _numbers: Tensor | None
    _name: str
    _keys: tuple[Any, Any]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def like(base: Tensor, compute: Callable[[], Tensor], name: str) -> AdaptedWeight:
        """A lazy stand-in for ``base``; ``compute`` gives its values, and ``name`` is for messages."""
        made = Tensor._make_wrapper_subclass(
            AdaptedWeight, base.shape, strides=base.stride(), storage_offset=base.storage_offset(),
            dtype=base.dtype, layout=base.layout, device=base.device,
        )  # fmt: skip
        made._compute, made._numbers, made._name = compute, None, name
        made._keys = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
        return made

    def numbers(self) -> Tensor:
        """The adapted numbers as an ordinary tensor without a graph."""
        if self._numbers is None:
            # Outside of the dispatch: inside it, torch would ignore a lazy conjugation.
            with torch.no_grad(), torch._C._ForceDispatchKeyGuard(*self._keys):
                found = self._compute().detach()
                if found.stride() != self.stride():  # a view(-1) that the base's parameter has must be there
                    found = found.new_empty_strided(self.shape, self.stride()).copy_(found)
                self._numbers = found
        return self._numbers

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        first = args[0] if args else None
        if func is torch.ops.aten.detach.default and isinstance(first, AdaptedWeight):
            return AdaptedWeight.like(first, first.numbers, first._name)
        if func._schema.is_mutable:
            names = [argument.name for argument in func._schema.arguments]
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            for argument in func._schema.arguments:
                if argument.alias_info is None or not argument.alias_info.is_write:
                    continue
                for value in tree_leaves(given.get(argument.name)):
                    if isinstance(value, AdaptedWeight):
                        raise OrthotuneError(
                            f"a write into the weight of adapted layer '{value._name}' ({func._schema.name})",
                            got="a weight that is computed from the base's and the adapter: the write would be lost",
                            do="Write into layer.get_base_layer().weight, or merge the adapter first",
                        )
        plain = tree_map(lambda one: one.numbers() if isinstance(one, AdaptedWeight) else one, (args, kwargs or {}))
        found = func(*plain[0], **plain[1])
        if func._schema.is_mutable or all(one.alias_info is None for one in func._schema.returns):
            return found
        # Writing to a part of the weight is refused as well: W[0].add_(1), W[:, 0] = 0.
        name = next(one._name for one in tree_leaves((args, kwargs)) if isinstance(one, AdaptedWeight))
        return tree_map(lambda one: _part(one, name) if isinstance(one, Tensor) else one, found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        array = self.numpy() if dtype is None else self.numpy().astype(dtype)
        return array.copy() if copy else array

    def numpy(self, *, force: bool = False) -> Any:
        """The values as a read-only array."""
        array = self.numbers().numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.numbers().tolist()

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.numbers().clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.numbers().__reduce_ex__(protocol)


def _part(part: Tensor, name: str) -> AdaptedWeight:
    return AdaptedWeight.like(part, lambda: part, name)


class _Adapted(torch.autograd.Function):
    """Connects an adapted weight with the parameters that it is computed from, before anything is computed."""

    @staticmethod
    def forward(ctx: Any, base: Tensor, compute: Callable[[], Tensor], name: str, *inputs: Tensor) -> Tensor:
        ctx.compute, ctx.inputs, ctx.name = compute, inputs, name
        ctx.versions = [p._version for p in inputs]
        return AdaptedWeight.like(base, compute, name)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.versions != [p._version for p in ctx.inputs]:
            raise OrthotuneError(
                f"the gradient of the weight of adapted layer '{ctx.name}'",
                got="parameters that were written to after the forward",
                do="Call backward before the optimizer steps",
            )
        wanted = [p for p in ctx.inputs if p.requires_grad]
        if not wanted:
            return (None,) * (3 + len(ctx.inputs))
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            found = iter(torch.autograd.grad(ctx.compute(), wanted, grad, create_graph=again, allow_unused=True))
        return None, None, None, *(next(found) if p.requires_grad else None for p in ctx.inputs)


def adapted_weight(base: Tensor, compute: Callable[[], Tensor], inputs: Sequence[Tensor], name: str) -> Tensor:
    """The adapted weight for ``base``, computed at its first use.

    Args:
        base: the parameter of the base, of the same shape, dtype and device.
        compute: gives the adapted weight, with a graph where gradients are on.
        inputs: the parameters that ``compute`` depends on.
        name: of the layer, for messages.

    Example:
        >>> base, scale = torch.ones(2, 2), torch.tensor(3.0, requires_grad=True)
        >>> W = adapted_weight(base, lambda: base * scale, [scale], "q_proj")
        >>> W.shape, W.sum().item()
        (torch.Size([2, 2]), 12.0)
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in inputs):
        found: Tensor = _Adapted.apply(base, compute, name, *inputs)
        return found
    return AdaptedWeight.like(base, compute, name)
