"""Which implementation runs, and why."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

Path = Literal["torch", "triton"]
Operation = Literal["from_parameters", "rotate"]

#: beyond this a block does not fit into one program's registers, and batched library products are the better kernel
LARGEST_BLOCK: dict[str, int] = {"from_parameters": 128, "rotate": 256}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

#: rows per output from which rotating the weight takes less time than rotating the rows
MANY_ROWS = 4

_forced: list[Path] = []
# Looked for once, here: compiled code may not look for modules, and torch 2.9 traces through a cache.
_triton_is_here = importlib.util.find_spec("triton") is not None


@dataclass(frozen=True)
class Choice:
    """The path that runs an operation, and the reason in a few words."""

    path: Path
    why: str


def triton_installed() -> bool:
    """Whether Triton can be imported; it is optional."""
    return _triton_is_here


@contextmanager
def forced(path: Path) -> Iterator[None]:
    """Run every operation on ``path`` inside the block, for measuring and for tests.

    Example:
        >>> with forced("torch"):
        ...     choose("rotate", "cuda", torch.bfloat16, 32, triton=True).path
        'torch'
    """
    _forced.append(path)
    try:
        yield
    finally:
        _forced.pop()


def choose(
    operation: Operation, device: str, dtype: torch.dtype, block_size: int, triton: bool | None = None
) -> Choice:
    """The path for one operation; a function of its arguments alone, except inside :func:`forced`.

    Args:
        operation: ``"from_parameters"`` (stored parameters to rotations) or ``"rotate"`` (inputs times rotations).
        device: type of the device, ``"cpu"`` or ``"cuda"``.
        dtype: of the stored parameters, or of the inputs.
        block_size: size of a block.
        triton: whether Triton is installed; looked up when None.

    Example:
        >>> choose("rotate", "cpu", torch.float32, 32)
        Choice(path='torch', why='Triton kernels need a GPU')
    """
    if _forced:
        return Choice(_forced[-1], "forced")
    return _choose(operation, device, dtype, block_size, triton_installed() if triton is None else triton)


@cache  # asked at every call of every layer
def _choose(operation: Operation, device: str, dtype: torch.dtype, block_size: int, triton: bool) -> Choice:
    if device != "cuda":
        return Choice("torch", "Triton kernels need a GPU")
    if not triton:
        return Choice("torch", "Triton is not installed")
    if dtype not in FLOATS:
        return Choice("torch", f"no Triton kernel for {dtype}")
    if block_size > LARGEST_BLOCK[operation]:
        return Choice("torch", f"blocks of {block_size} are beyond the kernel's {LARGEST_BLOCK[operation]}")
    return Choice("triton", f"a GPU, {str(dtype).removeprefix('torch.')}, blocks of {block_size}")


def kernel_is_rotated(signals: int, kernels: int, gradients: bool) -> bool:
    """Whether a convolution rotates its kernel instead of the channels of its signals, which means the same.

    Without gradients only: the gradient of a rotation through a rotated kernel costs as much as training the kernel.
    The kernel is rotated in float32 and rounded, a signal in its own dtype, so that the kernel must be much less work.

    Args:
        signals: multiplications that rotate the signals.
        kernels: multiplications that rotate the kernel.
        gradients: whether a backward follows.

    Example:
        >>> [kernel_is_rotated(1 << 20, 1 << 10, gradients=given) for given in (False, True)]
        [True, False]
    """
    return not gradients and signals > MANY_ROWS * kernels


def patches_are_rotated(device: str, patches: int, outputs: int) -> bool:
    """Whether a convolution rotates its patches instead of its kernel, which means the same; so far only on CPUs.

    Both are matrices with a column for each number that a kernel sees: ``(patches, fan_in)``, which is unfolded and
    rotated, and ``(outputs, fan_in)``, which is rotated in float32 and needs a gradient of that size. Moving these
    numbers through the memory is most of the work, so the matrix with fewer rows is rotated.

    Args:
        device: type of the device.
        patches: positions of the output, of all images of a batch and for each group.
        outputs: channels of the output.

    Example:
        >>> [patches_are_rotated("cpu", size * size, 640) for size in (16, 32)]
        [True, False]
    """
    return device == "cpu" and patches <= outputs


def weight_is_rotated(device: str, rows: int, outputs: int, gradients: bool) -> bool:
    """Whether a linear layer rotates its weight ``(outputs, n)`` instead of its ``rows`` inputs; so far only on CPUs.

    Without gradients only: the gradient of a rotation through a rotated weight costs as much as training the weight.

    Example:
        >>> [weight_is_rotated("cpu", rows=4096, outputs=320, gradients=given) for given in (False, True)]
        [True, False]
    """
    return device == "cpu" and not gradients and rows >= MANY_ROWS * outputs
