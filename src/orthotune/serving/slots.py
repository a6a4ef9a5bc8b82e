"""The maps of several adapters at one layer of an engine, in slots that are reserved at its start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from orthotune.errors import ConfigError
from orthotune.kernels.choose import choose, started
from orthotune.rotation.operator import Operator
from orthotune.serving.layer_map import LayerMap, embedded, operator_elements
from orthotune.serving.settings import KEY, ServingSettings
from orthotune.serving.step import Rows, Step

#: Up to so many rows of one slot, the blocks of every row are gathered and multiplied at once.
_FEW_ROWS = 4

#: The product of the layer's base with its bias: ``(rows, in)`` to ``(rows, out)``.
Product = Callable[[Tensor], Tensor]


def rotated_rows(x: Tensor, blocks: Tensor, rows: Rows) -> Tensor:
    """``x + x blocks[slot]`` for rows that lie slot by slot.

    Shapes: ``x`` ``(rows, n)``, ``blocks`` ``(slots, n / b, b, b)``; returns ``(rows, n)``.

    Args:
        x: the rows.
        blocks: the differences to the identity.
        rows: which slot each row has.

    Example:
        >>> quarter = torch.tensor([[[[-1.0, 1.0], [-1.0, -1.0]]]])
        >>> rotated_rows(torch.tensor([[1.0, 0.0]]), quarter, Step([0], torch.device("cpu")).rows(frozenset({0})))
        tensor([[0., 1.]])
    """
    size = blocks.shape[-1]
    if len(rows.runs) > 1 and max(stop - start for _, start, stop in rows.runs) <= _FEW_ROWS:
        own = blocks.index_select(0, rows.which).flatten(0, 1).to(x.dtype)
        return x + torch.bmm(x.reshape(-1, 1, size), own).view(x.shape)
    parts = [_rotated(x[start:stop], blocks[slot]) for slot, start, stop in rows.runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rotated(x: Tensor, blocks: Tensor) -> Tensor:
    count, size = blocks.shape[0], blocks.shape[-1]
    moved = torch.bmm(x.reshape(-1, count, size).transpose(0, 1), blocks.to(x.dtype))
    return x + moved.transpose(0, 1).reshape(x.shape)


def rotated_tokens(x: Tensor, blocks: Tensor, index: Tensor) -> Tensor:
    """``x + x blocks[slot]`` where the slot of a token is known to the device alone.

    The same operations run whatever the slots are, so that a captured graph serves every batch: a kernel of ours on a
    GPU that has one, and a rotation of all tokens for each slot elsewhere.

    Shapes: ``x`` ``(tokens, n)``, ``blocks`` ``(slots, n / b, b, b)``, ``index`` ``(tokens,)``.

    Args:
        x: all tokens.
        blocks: the differences to the identity.
        index: slot of each token; a token whose number is no slot stays as it is.

    Example:
        >>> rotated_tokens(torch.ones(2, 1), torch.ones(1, 1, 1, 1), torch.tensor([0, -1]))
        tensor([[2.],
                [1.]])
    """
    size = blocks.shape[-1]
    if choose("rotate_tokens", x.device, x.dtype, size).path == "triton":
        from orthotune.kernels.triton_tokens import rotate_tokens

        found = started("rotate_tokens", x.device, x.dtype, size, lambda: rotate_tokens(x, blocks, index))
        if found is not None:
            return found
    result = x
    for slot in range(blocks.shape[0]):
        result = torch.where((index == slot).unsqueeze(-1), _rotated(x, blocks[slot]), result)
    return result


@dataclass(frozen=True)
class _Held:
    """What the host knows of a slot, without a look at the device."""

    #: for each slice of the outputs the first slice whose input is rotated in the same way
    like: tuple[int, ...]
    scaled: bool
    rotated: bool


class LayerSlots:
    """The slots of one layer, whose outputs may be slices with an adapter each (q, k and v).

    Args:
        layer: name of the layer, for messages.
        slots: number of slots.
        inputs: features that this rank gets, and of the complete layer.
        outputs: features that this rank computes of each slice, and of the complete layer.
        settings: what is reserved.
        dtype: of the model.
        device: of the layer.

    Example:
        >>> layer = LayerSlots("q", 1, (4, 4), ((2, 2),), ServingSettings((2,)), torch.float32, torch.device("cpu"))
        >>> layer.nbytes  # two blocks of 2 x 2, two magnitudes and two biases
        48
    """

    def __init__(
        self,
        layer: str,
        slots: int,
        inputs: tuple[int, int],
        outputs: Sequence[tuple[int, int]],
        settings: ServingSettings,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.layer, self.features = layer, inputs[0]
        self.sizes = [held for held, _ in outputs]
        ends = list(accumulate(self.sizes))
        self.spans = list(zip([0, *ends[:-1]], ends, strict=True))

        def reserved(held: int, size: int) -> Tensor:
            return torch.zeros(slots, held // size, size, size, dtype=dtype, device=device)

        size = settings.block_size(inputs[1], inputs[0])
        self.inputs = [reserved(inputs[0], size) for _ in outputs]
        self.outputs = (
            [reserved(held, settings.block_size(full, held)) for held, full in outputs]
            if settings.outputs == "rotate" else None
        )  # fmt: skip
        self.scale = torch.zeros(slots, ends[-1], device=device)
        self.shift = torch.zeros(slots, ends[-1], device=device)
        self.held: dict[int, _Held] = {}
        self._operators: dict[tuple[int, int], Operator] = {}
        self._settings = settings

    @property
    def nbytes(self) -> int:
        """Bytes that are reserved for all slots."""
        own = (*self.inputs, *(self.outputs or ()), self.scale, self.shift)
        return sum(tensor.numel() * tensor.element_size() for tensor in own)

    def check(self, maps: Sequence[LayerMap | None], biased: bool) -> None:
        """Refuse maps that the reserved memory does not hold.

        Args:
            maps: one for each slice, cut for this rank.
            biased: whether the layer has a bias.

        Raises:
            ConfigError: names the layer and the setting.
        """
        for index, found in enumerate(maps):
            if found is None:
                continue
            if found.inputs is not None:
                self._check_size(found.inputs.shape[-1], self.inputs[index].shape[-1])
            if found.operator is not None and operator_elements(found.operator) > self.inputs[index][0].numel():
                raise ConfigError(
                    f"layer '{self.layer}'", got=f"a map of {operator_elements(found.operator)} numbers",
                    needed=f"at most {self.inputs[index][0].numel()}, which are reserved for a slot",
                    do=f"Start the engine with larger block_sizes of {KEY} in additional_config",
                )  # fmt: skip
            if found.outputs is not None:
                if self.outputs is None:
                    raise ConfigError(
                        f"layer '{self.layer}'", got="a rotation of the outputs (side='out')",
                        needed="memory that is reserved for those",
                        do=f"Start the engine with additional_config {{'{KEY}': {{'outputs': 'rotate'}}}}",
                    )  # fmt: skip
                self._check_size(found.outputs.shape[-1], self.outputs[index].shape[-1])
            if found.bias is not None and not biased:
                raise ConfigError(
                    f"layer '{self.layer}'", got="a trained bias", needed="none: the base has no bias here"
                )

    def _check_size(self, size: int, reserved: int) -> None:
        if reserved % size:
            raise ConfigError(
                f"layer '{self.layer}'", got=f"blocks of {size}",
                needed=f"a divisor of {reserved}, for which memory is reserved",
                do=f"Start the engine with additional_config {{'{KEY}': {{'block_sizes': "
                f"{sorted({*self._settings.block_sizes, size})}}}}}",
            )  # fmt: skip

    def put(self, slot: int, maps: Sequence[LayerMap | None], bias: Tensor | None) -> None:
        """Write the maps of an adapter into a slot.

        Args:
            slot: number of the slot.
            maps: one for each slice, checked.
            bias: the layer's own bias, ``(out,)``, or None.
        """
        self.clear(slot)
        scaled = rotated = False
        for index, found in enumerate(maps):
            if found is None:
                continue
            span = slice(*self.spans[index])
            if found.inputs is not None:
                self.inputs[index][slot].copy_(embedded(found.inputs, self.inputs[index].shape[-1]))
            if found.operator is not None:
                self._operators[slot, index] = found.operator
            if found.outputs is not None and self.outputs is not None:
                self.outputs[index][slot].copy_(embedded(found.outputs, self.outputs[index].shape[-1]))
                rotated = True
            if found.scale is not None:
                self.scale[slot, span].copy_(found.scale)
                scaled = True
            if found.bias is not None and bias is not None:
                self.shift[slot, span].copy_(found.bias.to(bias.device).float() - bias[span].float())
                scaled = True
        self.held[slot] = _Held(_alike(maps), scaled or rotated, rotated)

    def clear(self, slot: int) -> None:
        """Make a slot do nothing.

        Args:
            slot: number of the slot.
        """
        if self.held.pop(slot, None) is None:
            return
        for blocks in (*self.inputs, *(self.outputs or ())):
            blocks[slot] = 0
        self.scale[slot] = 0
        self.shift[slot] = 0
        for key in [key for key in self._operators if key[0] == slot]:
            del self._operators[key]

    def run(self, x: Tensor, bias: Tensor | None, step: Step, product: Product) -> Tensor:
        """The layer's output for a batch whose slots the host knows; rows without an adapter are not touched.

        Args:
            x: ``(tokens, in)``.
            bias: that ``product`` adds; or None.
            step: the slots of the tokens.
            product: of the base.

        Returns:
            ``(tokens, out)``.
        """
        here = step.present.intersection(self.held)
        rows = step.rows(here)
        y = product(rows.placed(x, self._rotated(rows.of(x), rows, 0)))
        if len(self.sizes) > 1:
            self._other_slices(x, y, step, here, product)
        if changed := frozenset(slot for slot in here if self.held[slot].scaled):
            rows = step.rows(changed)
            y = rows.placed(y, self._changed(rows.of(y), bias, rows))
        return y

    def _rotated(self, x: Tensor, rows: Rows, index: int) -> Tensor:
        own = {slot for slot, _, _ in rows.runs if (slot, index) in self._operators}
        if not own:
            return rotated_rows(x, self.inputs[index], rows)
        parts = []
        for slot, start, stop in rows.runs:
            part = x[start:stop]
            moved = (
                self._operators[slot, index].right(part) if slot in own else _rotated(part, self.inputs[index][slot])
            )
            parts.append(moved)
        return torch.cat(parts)

    def _other_slices(self, x: Tensor, y: Tensor, step: Step, here: frozenset[int], product: Product) -> None:
        """The slices whose inputs are rotated in another way than that of the first, by one product more for all."""
        groups: dict[tuple[int, ...], set[int]] = {}
        for slot in here:
            groups.setdefault(self.held[slot].like, set()).add(slot)
        for like, slots in groups.items():
            others = sorted({first for first in like if first})
            if not others:
                continue
            rows = step.rows(frozenset(slots))
            own = rows.of(x)
            pieces = product(torch.cat([self._rotated(own, rows, first) for first in others])).chunk(len(others))
            for (start, stop), first in zip(self.spans, like, strict=True):
                if first:
                    y[:, start:stop].index_copy_(0, rows.index, pieces[others.index(first)][:, start:stop])

    def _changed(self, y: Tensor, bias: Tensor | None, rows: Rows) -> Tensor:
        """Rotation and magnitude of outputs, which leave the bias alone, and the change of the bias."""
        before = y.float() if bias is None else y.float() - bias.float()
        after = before
        if self.outputs is not None and any(self.held[slot].rotated for slot, _, _ in rows.runs):
            pieces = before.split(self.sizes, dim=-1)
            after = torch.cat(
                [rotated_rows(piece, own, rows) for piece, own in zip(pieces, self.outputs, strict=True)], -1
            )
        return self._scaled(y, before, after, self.scale[rows.which], self.shift[rows.which])

    @staticmethod
    def _scaled(y: Tensor, before: Tensor, after: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        # The change is added to the rounded output, so that a map close to the identity keeps its precision.
        return (y.float() + (after - before) + after * scale + shift).to(y.dtype)

    def run_static(self, x: Tensor, bias: Tensor | None, index: Tensor, slices: Sequence[Product]) -> Tensor:
        """The same by operations that do not depend on the batch, for graphs; maps that are not blocks are not run.

        Args:
            x: ``(tokens, in)``.
            bias: of the layer, or None.
            index: ``(tokens,)``, slot of each token, -1 for the base.
            slices: the product of each slice of the outputs, with its bias.

        Returns:
            ``(tokens, out)``.
        """
        y = torch.cat(
            [own(rotated_tokens(x, blocks, index)) for own, blocks in zip(slices, self.inputs, strict=True)], -1
        )
        before = y.float() if bias is None else y.float() - bias.float()
        after = before
        if self.outputs is not None:
            pieces = zip(before.split(self.sizes, dim=-1), self.outputs, strict=True)
            after = torch.cat([rotated_tokens(piece, own, index) for piece, own in pieces], -1)
        known = (index >= 0).unsqueeze(-1)
        slot = index.clamp(min=0)
        return torch.where(known, self._scaled(y, before, after, self.scale[slot], self.shift[slot]), y)


def _alike(maps: Sequence[LayerMap | None]) -> tuple[int, ...]:
    """For each slice the first one whose input is rotated in the same way."""

    def same(a: LayerMap | None, b: LayerMap | None) -> bool:
        own = [(found.inputs, found.operator) if found else (None, None) for found in (a, b)]
        (blocks, operator), (others, other) = own
        if operator is not None or other is not None:
            return operator is other
        if blocks is None or others is None:
            return blocks is others
        return blocks.shape == others.shape and torch.equal(blocks, others)

    return tuple(next(j for j in range(i + 1) if same(maps[j], maps[i])) for i in range(len(maps)))
