"""Frozen blocks of a transformer that stay in main memory and are fetched one ahead of their use.

The group offloading of diffusers (0.42) moves every parameter of a block, those that are trained too, away from their
gradients; and it takes a block away when its forward ends, which the one of gradient checkpointing does not: it stops
at the last tensor that the backward needs, so that after a backward all blocks are on the device. Here only frozen
weights move, always as copies of ones that never change, and a block that is computed again in the backward stays until
the next one is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError

#: Blocks on the device at once: the one that computes, and the next one, which is fetched meanwhile.
RESIDENT = 2


class BlockSwap:
    """The frozen weights of some blocks, in main memory except while the blocks compute.

    Args:
        blocks: in the order in which they compute.
        device: where they compute.

    Example:
        >>> layers = [nn.Linear(2, 2).requires_grad_(False) for _ in range(3)]
        >>> swap = BlockSwap(layers, "cpu")
        >>> _ = layers[0](torch.ones(1, 2))
        >>> swap.resident
        [0, 1]
    """

    def __init__(self, blocks: list[nn.Module], device: torch.device | str) -> None:
        self.blocks, self.device = blocks, torch.device(device)
        pin = self.device.type == "cuda"
        self.stored = [
            {tensor: _in_main_memory(tensor.data, pin) for tensor in _frozen(block)} for block in blocks
        ]  # fmt: skip
        self.resident: list[int] = []
        self._stream = torch.cuda.Stream(self.device) if pin else None
        self._ready: dict[int, Any] = {}
        for number, block in enumerate(blocks):
            self.evict(number)
            block.register_forward_pre_hook(lambda _, __, number=number: self._use(number))

        self.place()

    def place(self) -> None:
        """Bring everything else in the blocks to the device, such as the parameters of an adapter that was added."""
        for block, stored in zip(self.blocks, self.stored, strict=True):
            for tensor in (*block.parameters(), *block.buffers()):
                if tensor not in stored:
                    tensor.data = tensor.data.to(self.device)

    def _use(self, number: int) -> None:
        """Make a block resident, evict the others, and fetch the one that is used next."""
        # In a backward the blocks are computed again in the other order.
        following = number + (-1 if torch._C._current_graph_task_id() != -1 else 1)
        wanted = [one for one in (number, following) if 0 <= one < len(self.blocks)]
        for other in [one for one in self.resident if one not in wanted]:
            self.evict(other)
        for one in wanted:
            if one not in self.resident:
                self._fetch(one)
        if number in self._ready:
            torch.cuda.current_stream(self.device).wait_event(self._ready.pop(number))

    def _fetch(self, number: int) -> None:
        if self._stream is None:
            for tensor, kept in self.stored[number].items():
                tensor.data = kept.to(self.device, copy=True)
        else:
            current = torch.cuda.current_stream(self.device)
            self._stream.wait_stream(current)  # memory of an evicted block may be used again only when it is free
            with torch.cuda.stream(self._stream):
                for tensor, kept in self.stored[number].items():
                    tensor.data = kept.to(self.device, non_blocking=True)
                    tensor.data.record_stream(current)
                self._ready[number] = self._stream.record_event()
        self.resident.append(number)

    def evict(self, number: int) -> None:
        """Take the weights of a block away from the device.

        Args:
            number: of the block.
        """
        for tensor, kept in self.stored[number].items():
            tensor.data = kept
        if number in self.resident:
            self.resident.remove(number)
        self._ready.pop(number, None)


def blocks_of(denoiser: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, in the order in which they compute.

    Args:
        denoiser: the network; its blocks are the members of its own lists of two or more modules.

    Raises:
        RecipeError: a network without such lists, or a UNet, whose blocks are not computed again completely.
    """
    lists = [part for part in denoiser.children() if isinstance(part, nn.ModuleList) and len(part) > 1]
    if not lists or hasattr(denoiser, "down_blocks"):
        raise RecipeError(
            f"swap_blocks for a {type(denoiser).__name__}", got="no list of blocks that are computed one after another",
            needed="a transformer", do="Leave swap_blocks out",
        )  # fmt: skip
    return [block for part in lists for block in part]


def swapped(denoiser: nn.Module, count: int) -> list[nn.Module]:
    """The blocks that stay in main memory: the last ones.

    Args:
        denoiser: the network.
        count: of blocks; more than there are takes all.

    Raises:
        RecipeError: as :func:`blocks_of`.
    """
    return blocks_of(denoiser)[-count:] if count else []


def swapped_bytes(blocks: list[nn.Module]) -> int:
    """The bytes of frozen weights that are not on the device at the worst moment, when the two largest blocks are.

    Args:
        blocks: the swapped ones.

    Example:
        >>> swapped_bytes([nn.Linear(2, 2, bias=False).requires_grad_(False) for _ in range(5)])
        48
    """
    sizes = [sum(tensor.nbytes for tensor in _frozen(block)) for block in blocks]
    beside = [sum(pair) for pair in pairwise(sizes)] or sizes
    return sum(sizes) - max(beside, default=0)


def _frozen(block: nn.Module) -> Iterator[Tensor]:
    held: dict[int, Tensor] = {id(p): p for p in block.parameters() if not p.requires_grad}
    yield from held.values()


def _in_main_memory(tensor: Tensor, pin: bool) -> Tensor:
    kept = tensor.cpu()
    return kept.pin_memory() if pin else kept
