"""One batch under several adapters: every row runs under its own, as PEFT's ``adapter_names`` say.

Rows of one adapter are gathered, and all adapters with equal block sizes share one batched product; there is no loop
over rows. Rows of ``"__base__"``, and of an adapter that a layer does not have, are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.kernels.autograd import looked_through
from orthotune.kernels.rotate import rotate
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.parametrization.rotation import Rotation

if TYPE_CHECKING:
    from orthotune.layers.base import OFTLayer

#: PEFT's name for the base model without an adapter
BASE = "__base__"
#: Rows of single tokens to an adapter, on average, above which each adapter has a product of its own: in one product
#: of all rows every row has a copy of its rotation, as many numbers as ``b`` rows.
ROWS_APART = 4


class _Chosen(NamedTuple):
    """The rows of some adapters: ``rows`` lie adapter by adapter, ``which`` is the adapter of each."""

    rows: Tensor
    which: Tensor
    #: rows of each adapter, when all have as many
    each: int | None
    #: whether these are all rows of the batch, in its order
    everything: bool


class MixedBatch:
    """Which rows of a batch run under which adapter. Made for one call of the model, or for one layer's.

    Without gradients, the rotations that a layer needs are put side by side once, not at every token of a generation.

    Args:
        names: one adapter for each row; ``"__base__"`` for the base model.

    Raises:
        ConfigError: ``names`` is not a list of names.

    Example:
        >>> MixedBatch(["a", "__base__", "a"]).rows
        {'a': [0, 2]}
    """

    def __init__(self, names: Sequence[str]) -> None:
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"adapter_names={names!r}", needed="a list with the name of an adapter for each row")
        self.names = tuple(names)
        self.rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            if name != BASE:
                self.rows.setdefault(name, []).append(row)
        self._chosen: dict[tuple[tuple[str, ...], torch.device], _Chosen] = {}
        self._parts: dict[tuple[str, ...], tuple[MixedBatch, Tensor, Tensor]] = {}
        self._kept: dict[Any, tuple[list[Any], Tensor]] = {}

    def chosen(self, adapters: tuple[str, ...], device: torch.device) -> _Chosen:
        """The rows of ``adapters``, see :class:`_Chosen`."""
        found = self._chosen.get((adapters, device))
        if found is None:
            order = [row for name in adapters for row in self.rows[name]]
            counts = [len(self.rows[name]) for name in adapters]
            with torch.inference_mode(False):
                which = torch.repeat_interleave(torch.arange(len(adapters)), torch.tensor(counts)).to(device)
                rows = torch.tensor(order, device=device)
            each = counts[0] if len(set(counts)) == 1 else None
            found = _Chosen(rows, which, each, order == list(range(len(self.names))))
            self._chosen[adapters, device] = found
        return found

    def parted(self, adapters: tuple[str, ...], device: torch.device) -> tuple[MixedBatch, Tensor, Tensor]:
        """The rows of ``adapters`` as a separate batch, their indices, and the indices of the other rows."""
        found = self._parts.get(adapters)
        if found is None:
            inside = [row for row, name in enumerate(self.names) if name in adapters]
            outside = [row for row, name in enumerate(self.names) if name not in adapters]
            own = MixedBatch([self.names[row] for row in inside])
            found = own, torch.tensor(inside, device=device), torch.tensor(outside, device=device)
            self._parts[adapters] = found
        return found

    def rotated(self, layer: OFTLayer, x: Tensor, adapters: Sequence[str], transposed: bool = False) -> Tensor:
        """``x`` ``(rows, ..., n)`` with the rows of each adapter times its rotation; other rows as they are."""
        sizes: dict[Any, list[str]] = {}
        for name in adapters:
            sizes.setdefault(layer.rotations(name)[""].layout, []).append(name)
        for names in sizes.values():
            x = self._rotated(layer, x, tuple(names), transposed)
        return x

    def _rotated(self, layer: OFTLayer, x: Tensor, adapters: tuple[str, ...], transposed: bool) -> Tensor:
        device = x.device.type
        if torch.is_autocast_enabled(device):
            if x.dtype is not torch.float64:
                x = x.to(torch.get_autocast_dtype(device))
            with torch.autocast(device, enabled=False):
                return self._rotated(layer, x, adapters, transposed)
        if isinstance(layer.rotations(adapters[0])[""], FamilyRotation):
            for name in adapters:
                x = self._multiplied(layer, x, name, transposed)
            return x
        chosen = self.chosen(adapters, x.device)
        one_row = x[0].numel() == x.shape[-1] and chosen.each in (1, None)

        def blocks(rotation: Rotation) -> Tensor:
            # A product of a single row is quicker in float32, and closer.
            return rotation() if one_row or len(adapters) == 1 else rotation().to(x.dtype)

        R = self._beside(layer, adapters, blocks, (one_row, x.dtype))
        own = x if chosen.everything else x.index_select(0, chosen.rows)
        if len(adapters) == 1:
            rotated = rotate(own, R[0].mT if transposed else R[0])
        elif x.dim() == 2 and chosen.each is None and len(own) > ROWS_APART * len(adapters):
            each = own.split([len(self.rows[name]) for name in adapters])
            rotated = torch.cat(
                [rotate(rows, one.mT if transposed else one) for rows, one in zip(each, R, strict=True)]
            )
        else:
            rotated = _products(own, R, chosen, transposed)
        return rotated if chosen.everything else x.index_copy(0, chosen.rows, rotated)

    def _multiplied(self, layer: OFTLayer, x: Tensor, name: str, transposed: bool) -> Tensor:
        """``x`` with the rows of one adapter times its operator, which does not stack with others."""
        chosen, operator = self.chosen((name,), x.device), layer.rotations(name)[""]()
        own = x if chosen.everything else x.index_select(0, chosen.rows)
        mapped = rotate(own, operator.mT if transposed else operator)
        return mapped if chosen.everything else x.index_copy(0, chosen.rows, mapped)

    def _beside(
        self, layer: OFTLayer, adapters: tuple[str, ...], make: Callable[[Rotation], Tensor], key: Any
    ) -> Tensor:
        """The stacked results of ``make`` for each adapter's rotation; cached unless a gradient is needed."""
        rotations = [layer.rotations(name)[""] for name in adapters]
        passing = torch.is_grad_enabled() or torch.compiler.is_compiling() or looked_through()
        if passing or any(rotation.weight.is_inference() for rotation in rotations):
            return torch.stack([make(rotation) for rotation in rotations])
        key = (id(layer), adapters, key)
        served = [rotation.known() for rotation in rotations]
        kept = self._kept.get(key)
        if kept is None or any(a is not b for a, b in zip(kept[0], served, strict=True)):
            kept = self._kept[key] = served, torch.stack([make(rotation) for rotation in rotations])
        return kept[1]

    def scaled(self, layer: OFTLayer, y: Tensor, adapters: Sequence[str]) -> Tensor:
        """``y`` ``(rows, ..., out)`` with the rows of each adapter times its magnitude."""
        if not adapters:
            return y
        chosen = self.chosen(tuple(adapters), y.device)
        scales = torch.stack([_magnitude(layer, name) for name in adapters]).to(y.dtype)
        scale = scales.index_select(0, chosen.which).view(-1, *[1] * (y.dim() - 2), y.shape[-1])
        if chosen.everything:
            return y * scale
        return y.index_copy(0, chosen.rows, y.index_select(0, chosen.rows) * scale)

    def by_adapter(self, x: Tensor, adapters: Sequence[str], run: Callable[[list[str], Tensor], Any]) -> Any:
        """``run(adapters, rows of x)`` for each adapter and for the base, put together in the batch's order.

        For layers that rotate their weight: each adapter has a separate weight.
        """
        groups = {name: self.rows[name] for name in adapters}
        taken = {row for rows in groups.values() for row in rows}
        rest = [row for row in range(len(self.names)) if row not in taken]
        found = [run([name], x[torch.tensor(rows, device=x.device)]) for name, rows in groups.items()]
        found += [run([], x[torch.tensor(rest, device=x.device)])] if rest else []
        if len(found) == 1:
            return found[0]
        order = torch.tensor([row for rows in groups.values() for row in rows] + rest, device=x.device)
        return torch.cat(found)[order.argsort()]


def _magnitude(layer: OFTLayer, adapter: str) -> Tensor:
    scale = layer.magnitude(adapter)
    assert scale is not None, "asked only for adapters that have one"
    return scale


def _products(x: Tensor, R: Tensor, chosen: _Chosen, transposed: bool) -> Tensor:
    """Rows ``(m, ..., n)``, adapter by adapter, times ``R`` ``(adapters, n / b or 1, b, b)`` or its transposes."""
    if chosen.each is None:
        R = R.index_select(0, chosen.which)
    if transposed:
        R = R.mT  # not before: products with a transposed factor round in an order of their own
    groups, stored, size = R.shape[0], R.shape[1], R.shape[-1]
    rows = x.to(R.dtype)
    if stored == 1:
        rotated = torch.bmm(rows.reshape(groups, -1, size), R[:, 0])
    else:
        blocks = rows.reshape(groups, -1, stored, size).transpose(1, 2)
        rotated = torch.bmm(blocks.reshape(groups * stored, -1, size), R.flatten(0, 1))
        rotated = rotated.view(groups, stored, -1, size).transpose(1, 2)
    return rotated.reshape(x.shape).to(x.dtype)


def mixed_batch(layer: OFTLayer, kwargs: dict[str, Any], x: Tensor | None = None) -> MixedBatch | None:
    """The mixed batch of a call of ``layer`` with the input ``x``, taken out of its keyword arguments.

    None without one, and when adapters are disabled: then every row is the base's.

    Raises:
        ConfigError: another number of names than rows, or adapters are merged.
    """
    names = kwargs.pop("adapter_names", None)
    if names is None:
        return None
    batch = names if isinstance(names, MixedBatch) else MixedBatch(names)
    if x is not None and len(x) != len(batch.names):
        raise ConfigError(
            f"adapter_names for layer '{_name(layer)}': {len(batch.names)} names",
            got=f"an input of shape {tuple(x.shape)}",
            needed="one name for each row of the batch, which is the first dimension",
            do="Leave the layer out of the adapter if it gets no batch (positions, routed tokens)",
        )
    if layer.merged:
        raise ConfigError(
            f"adapter_names for layer '{_name(layer)}'",
            got=f"{layer.merged_adapters} merged into its weight",
            do="Cannot pass `adapter_names` when there are merged adapters, please call `unmerge_adapter` first",
        )
    return None if layer._disable_adapters else batch


def refuse_mixed_batch(layer: OFTLayer, kwargs: dict[str, Any]) -> bool:
    """Whether a call of a layer that has one weight for the entire batch must run as the base: no row has an adapter.

    Raises:
        UnsupportedLayerError: a row runs under an adapter of this layer.
    """
    batch = mixed_batch(layer, kwargs)
    if batch is None:
        return False
    here = sorted(name for name in batch.rows if layer.rotations(name))
    if here:
        raise UnsupportedLayerError(
            f"adapter_names for layer '{_name(layer)}' ({type(layer).__name__})",
            got=f"{here}, which rotate its weights, but the layer has one set of weights for the entire batch",
            do="Run each adapter by itself with set_adapter, or leave this layer out of the adapters",
        )
    return True


def _name(layer: OFTLayer) -> str:
    return next(iter(layer.slots.values())).settings.layer
