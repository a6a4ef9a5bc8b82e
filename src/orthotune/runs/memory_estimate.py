"""What a training needs in memory, counted without running it: the record, and what autograd keeps of a forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from orthotune.layers.parametrization.rotation import Rotation

#: usual memory of cards, in GiB
CARDS = (12, 16, 24, 48, 80)
#: share of a card that the driver, the libraries and temporary buffers are taken to need
RESERVED = 0.1
_UNITS = ("B", "KiB", "MiB", "GiB")


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device during the training of one micro-batch.

    Args:
        frozen: frozen weights of the complete pipeline, or without text encoders and VAE where these rest, and without
            the blocks that are swapped, but for two of them; with quantization as it will be.
        trained: trained parameters, in float32.
        gradients: of the trained parameters.
        optimizer: the states of the optimizer; of Adafactor, an upper bound.
        average: exponential moving average, if there is one.
        activations: tensors saved for the backward; None if the model does not run with fake tensors. With gradient
            checkpointing these are the inputs of the blocks; the recomputation of one block needs additional memory.
        components: the frozen weights by component of the pipeline.

    Example:
        >>> MemoryEstimate(1024, 512, 512, 1024, 0, None).total
        3072
    """

    frozen: int
    trained: int
    gradients: int
    optimizer: int
    average: int
    activations: int | None
    components: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """The sum, without temporary buffers of single operations."""
        return sum(count or 0 for count in self._parts().values())

    def _parts(self) -> dict[str, int | None]:
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "components"}

    def lines(self) -> list[str]:
        """The estimate as lines for a terminal."""
        parts = [f"{name} {shown(count)}" for name, count in self._parts().items() if count != 0]
        frozen = ", ".join(f"{name} {shown(count)}" for name, count in self.components.items())
        return [f"memory      {shown(self.total)} (estimate), plus temporary buffers of single operations",
                f"            {', '.join(parts)}",
                *([f"            frozen: {frozen}"] if frozen else []),
                f"cards       {self.cards()}"]  # fmt: skip

    def cards(self) -> str:
        """Which of the usual sizes of cards the estimate fits, as text.

        Example:
            >>> MemoryEstimate(13 * 1024**3, 0, 0, 0, 0, 0).cards()
            '12 GB: no, 16 GB: yes, 24 GB: yes, 48 GB: yes, 80 GB: yes'
        """
        if self.activations is None:
            return "unknown, as the activations are not known"
        room = {card: (1 - RESERVED) * card * 1024**3 for card in CARDS}
        return ", ".join(f"{card} GB: {'yes' if self.total <= space else 'no'}" for card, space in room.items())


def without_data(parts: Sequence[nn.Module], mode: FakeTensorMode) -> dict[int, Any]:
    """The memo of ``deepcopy`` that replaces each parameter and buffer by a tensor of its shape without data.

    Args:
        parts: modules.
        mode: in which the copy is called.
    """
    tensors = {id(tensor): tensor for part in parts for tensor in (*part.parameters(), *part.buffers())}
    memo: dict[int, Any] = {}
    with mode:
        for name, tensor in tensors.items():
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            learns = tensor.requires_grad
            memo[name] = nn.Parameter(empty, learns) if isinstance(tensor, nn.Parameter) else empty
    return memo


def rotations_of_any_value(model: nn.Module) -> None:
    """Let the rotations of a model without data be computed without a look at their values.

    How R is computed depends on its values, which are not there; the saved tensors do not.

    Args:
        model: copied with :func:`without_data`, in the same mode.
    """
    for module in model.modules():
        if isinstance(module, Rotation):
            size = module.layout.block_size
            vars(module)["known"] = partial(torch.empty, module.weight.shape[0], size, size)
            module.group = None


def saved_bytes(owned: Iterable[Tensor], forward: Callable[[], Any]) -> int | None:
    """Bytes that autograd keeps of a forward; None where its control flow depends on values of tensors without data.

    Args:
        owned: parameters and buffers, which are there anyway.
        forward: returns what the backward would start from.
    """
    known = {tensor.untyped_storage()._cdata for tensor in owned}
    saved: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage  # kept alive until they are summed, so that no address is reused
        return tensor

    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = forward()
    except (RuntimeError, NotImplementedError, DynamicOutputShapeException, DataDependentOutputException):
        return None
    del losses
    return sum(storage.nbytes() for storage in saved.values())


def shown(count: int | None) -> str:
    """A number of bytes in readable units.

    Example:
        >>> shown(1536), shown(None)
        ('1.5 KiB', 'unknown')
    """
    if count is None:
        return "unknown"
    power = 0
    while count >= 1024 ** (power + 1) and power < len(_UNITS) - 1:
        power += 1
    return f"{count / 1024**power:.1f} {_UNITS[power]}" if power else f"{count} B"
