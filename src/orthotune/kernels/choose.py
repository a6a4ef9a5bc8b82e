"""Which implementation runs, and why."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal, TypeVar

import torch

from orthotune.kernels.cards import Card, card_of
from orthotune.kernels.tiles import ALIGNED, LARGEST_CAYLEY, LARGEST_ROTATED, shared_memory

#: ``torch``: operations of torch. ``triton``: a kernel of ours. ``products``: batched products of a library, whose
#: smallest inverses a kernel of ours makes.
Path = Literal["torch", "triton", "products"]
Operation = Literal["from_parameters", "rotate", "rotate_tokens"]
T = TypeVar("T")

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
#: the first NVIDIA GPUs that Triton compiles for, and the first on whose tensor cores it multiplies: on older ones
#: the kernels that rotate inputs spill registers
OLDEST, OLDEST_PRODUCTS = 75, 80
#: AMD's GPUs on which the gradient of a rotation spills registers for inputs in float32
RDNA3 = "gfx11"
#: NVIDIA's GPUs on which the rotation of 64 features spills registers for inputs of 16 bits
WIDE_SPILLS = "sm_100"

#: rows per output from which rotating the weight takes less time than rotating the rows
MANY_ROWS = 4
#: patches per output up to which a training step in float32 is no slower by rotated patches than by a rotated kernel:
#: the most that ``benchmarks/convolutions.py`` has measured
MANY_PATCHES = 13

_forced: list[Path] = []
# Looked for once, here: compiled code may not look for modules, and torch 2.9 traces through a cache.
_triton_is_here = importlib.util.find_spec("triton") is not None
#: kernels that did not start, by what :func:`choose` is asked
_refused: set[tuple[str, Card, torch.dtype, int]] = set()


@dataclass(frozen=True)
class Choice:
    """The path that runs an operation, and the reason in a few words."""

    path: Path
    why: str


NO_GPU = Choice("torch", "Triton kernels need a GPU")


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


def free() -> bool:
    """Whether :func:`choose` decides, and not :func:`forced`.

    Example:
        >>> free()
        True
    """
    return not _forced


def choose(
    operation: Operation,
    device: str | torch.device,
    dtype: torch.dtype,
    block_size: int,
    triton: bool | None = None,
    card: Card | None = None,
) -> Choice:
    """The path for one operation; a function of its arguments alone, except inside :func:`forced`.

    Args:
        operation: ``"from_parameters"`` (stored parameters to rotations), ``"rotate"`` (inputs times rotations) or
            ``"rotate_tokens"`` (tokens times the rotations of their slots).
        device: ``"cpu"``, ``"cuda"`` (AMD's too), ``"xpu"``, ``"mps"``, or a device of torch.
        dtype: of the stored parameters, or of the inputs.
        block_size: size of a block.
        triton: whether Triton is installed; looked up when None.
        card: the GPU; the one of ``device`` when None.

    Example:
        >>> choose("rotate", "cpu", torch.float32, 32)
        Choice(path='torch', why='Triton kernels need a GPU')
        >>> choose("from_parameters", "cuda", torch.float32, 64, triton=True).path
        'products'
    """
    if _forced:
        return Choice(_forced[-1], "forced")
    kind = device if isinstance(device, str) else device.type
    if kind == "cpu":
        return NO_GPU
    if card is None:
        card = card_of(device)
    if _refused and (operation, card, dtype, block_size) in _refused:
        return Choice("torch", f"the kernel could not be started on {card.name}")
    return _choose(operation, kind, dtype, block_size, triton_installed() if triton is None else triton, card)


@cache  # asked at every call of every layer
def _choose(operation: Operation, device: str, dtype: torch.dtype, block_size: int, triton: bool, card: Card) -> Choice:
    unfit = _unfit(operation, device, dtype, triton, card)
    if unfit is not None:
        return Choice("torch", unfit)
    needed = shared_memory(operation, dtype.itemsize, block_size)
    if needed > card.shared:
        return Choice("torch", f"the kernel needs {needed} bytes of shared memory, {card.name} gives {card.shared}")
    about = f"a GPU, {str(dtype).removeprefix('torch.')}, blocks of {block_size}"
    if operation == "from_parameters" and block_size > LARGEST_CAYLEY:
        return Choice("products", f"{about}, more than one program holds in registers")
    if block_size > LARGEST_ROTATED:
        return Choice("torch", f"blocks of {block_size} are beyond the kernel's {LARGEST_ROTATED}")
    if operation == "rotate" and card.maker == "NVIDIA" and _odd(block_size) and dtype is not torch.float32:
        return Choice("torch", f"{about}, no multiple of {ALIGNED}: the kernel spills registers for inputs of 16 bits")
    if operation == "rotate" and card.architecture == WIDE_SPILLS and block_size > 32 and dtype is not torch.float32:
        return Choice("torch", f"on {card.architecture} the kernel of blocks of more than 32 spills registers")
    return Choice("triton", about)


def _odd(block_size: int) -> bool:
    # On sm_89 the rotation of 100 features of 16 bits, which are read one by one, spills up to 1,008 bytes.
    return block_size > 32 and block_size % ALIGNED > 0


def _unfit(operation: Operation, device: str, dtype: torch.dtype, triton: bool, card: Card) -> str | None:
    """Why no kernel of ours runs at all on such a device and dtype."""
    if device == "mps":
        return "Triton does not compile for Apple's GPUs"
    if device not in ("cuda", "xpu"):
        return "Triton kernels need a GPU"
    if not triton:
        return "Triton is not installed"
    if dtype not in FLOATS:
        return f"no Triton kernel for {dtype}"
    if 0 < card.capability < OLDEST:
        return f"Triton does not compile for {card.architecture}"
    if operation != "from_parameters" and 0 < card.capability < OLDEST_PRODUCTS:
        return f"on {card.architecture} the kernel spills registers"
    if operation == "rotate" and dtype is torch.float32 and card.architecture.startswith(RDNA3):
        return f"on {card.architecture} the kernel of float32 inputs spills registers"
    return None


def started(
    operation: Operation, device: torch.device, dtype: torch.dtype, block_size: int, launch: Callable[[], T]
) -> T | None:
    """``launch()``, or None where the kernel does not compile or start on this GPU: from then on torch's path runs.

    The first failure of a kernel is reported in a warning; inside :func:`forced` it is raised.

    Args:
        operation: as :func:`choose` was asked.
        device: of the tensors.
        dtype: as :func:`choose` was asked.
        block_size: size of a block.
        launch: starts the kernel.

    Example:
        >>> started("rotate", torch.device("cpu"), torch.float32, 32, lambda: "an output")
        'an output'
    """
    if torch.compiler.is_compiling():
        return launch()
    try:
        return launch()
    except Exception as error:
        if _forced or not _of_the_kernel(error):
            raise
        card = card_of(device)
        _refused.add((operation, card, dtype, block_size))
        message = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0]
        warnings.warn(
            f"the Triton kernel for {operation}, {str(dtype).removeprefix('torch.')}, blocks of {block_size}, "
            f"could not be started on {card.name} ({card.architecture or card.maker}): {message}. "
            "torch's own operations run from here on; results are the same, and slower",
            RuntimeWarning, stacklevel=3,
        )  # fmt: skip
        return None


def _of_the_kernel(error: Exception) -> bool:
    """Whether an error is about compiling or starting a kernel: memory that is full, or a fault of earlier work of
    the GPU, is not."""
    if isinstance(error, (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))):
        return False
    if type(error).__module__.partition(".")[0] == "triton":
        return True
    return isinstance(error, RuntimeError) and ("Triton" in str(error) or "PassManager" in str(error))


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


def patches_are_rotated(device: str, patches: int, outputs: int, trains: bool = False) -> bool:
    """Whether a convolution rotates its patches instead of its kernel, which means the same; so far only on CPUs.

    Both are matrices with a column for each number that a kernel sees: ``(patches, fan_in)``, which is unfolded and
    rotated, and ``(outputs, fan_in)``, which is rotated in float32 and needs a gradient of that size. Moving these
    numbers through the memory is most of the work, so the matrix with fewer rows is rotated. In a training step the
    gradient of the kernel's size costs more than many patches do.

    Args:
        device: type of the device.
        patches: positions of the output, of all images of a batch and for each group.
        outputs: channels of the output.
        trains: whether a backward in float32 follows.

    Example:
        >>> [patches_are_rotated("cpu", size * size, 640) for size in (16, 32)]
        [True, False]
        >>> [patches_are_rotated("cpu", size * size, 640, trains=True) for size in (32, 128)]
        [True, False]
    """
    return device == "cpu" and patches <= outputs * (MANY_PATCHES if trains else 1)


def weight_is_rotated(device: str, rows: int, outputs: int, gradients: bool) -> bool:
    """Whether a linear layer rotates its weight ``(outputs, n)`` instead of its ``rows`` inputs; so far only on CPUs.

    Without gradients only: the gradient of a rotation through a rotated weight costs as much as training the weight.

    Example:
        >>> [weight_is_rotated("cpu", rows=4096, outputs=320, gradients=given) for given in (False, True)]
        [True, False]
    """
    return device == "cpu" and not gradients and rows >= MANY_ROWS * outputs
