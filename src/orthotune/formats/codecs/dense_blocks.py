"""Blocks that a file stores as dense matrices: checks, and packing of their skew-symmetric part."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.files.names import escaped
from orthotune.formats.adapter_file import AdapterFile, refuse_shape
from orthotune.rotation.packing import pack

#: Suffixes of other methods, and of forks that changed the meaning of the rotation. A file with them is refused.
FOREIGN = (
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "lora_mid.weight", "hada_w1_a", "hada_w2_a",
    "lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a", "a1.weight", "dora_scale", "on_input", "initial_norm",
    "dora_log_multiplier", "oft_R.clipped_oft", "oft_R.cans_oft", "vera_lambda_b", "lora_magnitude_vector",
    "lora_magnitude_vector.weight", "lora_embedding_A", "lora_embedding_B",
)  # fmt: skip
#: Suffixes among these that can also be the name of a module that PEFT saves in full.
AMBIGUOUS = ("a1.weight", "on_input", "initial_norm")


def square_blocks(file: AdapterFile, name: str, tensor: Tensor, dims: int) -> Tensor:
    """The tensor in float32 or float64, if it is a stack of square matrices.

    Args:
        file: of the tensor, for messages.
        name: of the tensor.
        tensor: the stored tensor.
        dims: number of dimensions that it must have.

    Raises:
        AdapterFileError: the tensor has another shape.
    """
    shape = tensor.shape
    if tensor.dim() != dims or shape[-1] != shape[-2] or shape[-1] < 2 or not tensor.numel():
        refuse_shape(file.path, name, shape, f"{dims} dimensions, the last two equal and at least 2")
    return floating(file, name, tensor)


def floating(file: AdapterFile, name: str, tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it is float64.

    Args:
        file: of the tensor, for messages.
        name: of the tensor.
        tensor: the stored tensor.

    Raises:
        AdapterFileError: the tensor holds integers.
    """
    if not tensor.is_floating_point():
        raise AdapterFileError(f"Tensor '{name}' of {file.path}", got=f"{tensor.dtype}", needed="floating point")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def scale_of_rows(file: AdapterFile, name: str, tensor: Tensor, rows: int | None) -> Tensor:
    """A scale per output neuron as a vector; stored dimensions of size 1 are dropped.

    Args:
        file: of the tensor, for messages.
        name: of the tensor.
        tensor: the stored tensor.
        rows: number of output neurons; None if unknown.

    Raises:
        AdapterFileError: the number of entries is not ``rows``, or more than one dimension is larger than 1.
    """
    if tensor.numel() != max(tensor.shape, default=0) or (rows is not None and tensor.numel() != rows):
        refuse_shape(file.path, name, tensor.shape, f"{rows} numbers" if rows else "one number per row")
    return floating(file, name, tensor).flatten()


def skew_vector(blocks: Tensor, factor: float = 1.0) -> Tensor:
    """The packed matrix ``factor (A - Aᵀ)``.

    Args:
        blocks: ``A``, ``(..., b, b)``.
        factor: multiplies the result.

    Returns:
        ``(..., b (b - 1) / 2)``.

    Example:
        >>> skew_vector(torch.tensor([[[5.0, 3.0], [1.0, 7.0]]]), 0.5)
        tensor([[1.]])
    """
    return pack((blocks - blocks.mT) * factor)


def is_shared(file: AdapterFile, name: str, blocks: Tensor) -> bool:
    """Whether the config says that one block is shared by the complete layer.

    Args:
        file: with its config.
        name: of the tensor, for messages.
        blocks: the stored blocks ``(n, b, b)``.

    Raises:
        AdapterFileError: the config says so, but there is more than one block.
    """
    shared = bool((file.config or {}).get("block_share"))
    if shared and blocks.shape[0] != 1:
        refuse_shape(file.path, name, blocks.shape, "one block, because the config has block_share")
    return shared


def within_ball(blocks: Tensor, radius: float) -> Tensor:
    """Each matrix projected to a Frobenius ball around zero, as the original COFT does before it takes the skew part.

    Args:
        blocks: ``(..., b, b)``.
        radius: of the ball.

    Example:
        >>> within_ball(torch.full((1, 2, 2), 2.0), 1.0).norm().item()
        1.0
    """
    norm = torch.linalg.matrix_norm(blocks, keepdim=True)
    return torch.where(norm > radius, blocks * (radius / norm), blocks)


def refuse_foreign(file: AdapterFile, used: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The names of the tensors that belong to no rotation; tensors of other methods are refused.

    Args:
        file: the file.
        used: layer -> suffix -> names of the tensors of its rotation.

    Raises:
        AdapterFileError: the file mixes methods.
    """
    taken = {name for layer in used.values() for name in layer.values()}
    rest = [name for name in file.shapes if name not in taken]
    suffixes = tuple(f".{suffix}" for suffix in FOREIGN if file.config is None or suffix not in AMBIGUOUS)
    foreign = [name for name in rest if name.endswith(suffixes)]
    if foreign:
        raise AdapterFileError(
            f"{file.path} mixes rotations with tensors of another method",
            got=f"{len(foreign)} such tensors: {escaped(foreign)}",
            needed="rotations alone",
            do="Load the complete file with the tool that wrote it",
        )
    return rest


def one_number(file: AdapterFile, name: str, tensor: Tensor) -> float:
    """The value of a tensor with one element.

    Args:
        file: of the tensor, for messages.
        name: of the tensor.
        tensor: the stored tensor.

    Raises:
        AdapterFileError: the tensor has more than one element, or is negative.
    """
    if tensor.numel() != 1 or tensor.is_complex() or tensor.item() < 0:
        refuse_shape(file.path, name, tensor.shape, "one number, not negative")
    return float(tensor.item())


def check_butterfly(file: AdapterFile, name: str, blocks: Tensor, features: int) -> None:
    """Check the block sizes of a butterfly: each stage doubles the number of features over which blocks are spread.

    Args:
        file: of the tensor, for messages.
        name: of the tensor.
        blocks: ``(stages, n, b, b)``.
        features: of the layer.

    Raises:
        AdapterFileError: the stages do not fit the features.
    """
    stages, b = blocks.shape[0], blocks.shape[-1]
    if stages > 1 and (b % 2 or stages > 64 or features % (b << (stages - 1))):
        needed = f"an even block size that, doubled for each further stage, divides {features} features"
        refuse_shape(file.path, name, blocks.shape, needed)
