"""Blocks that a file stores as whole matrices: what is checked, and how their skew part becomes a packed vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.files.names import escaped
from orthotune.formats.adapter_file import AdapterFile, refuse_shape
from orthotune.rotation.packing import pack

#: Suffixes of other methods, and of forks that changed what the rotation means: reading around them would be wrong.
FOREIGN = (
    "lora_A.weight", "lora_B.weight", "lora_down.weight", "lora_up.weight", "lora_mid.weight", "hada_w1_a", "hada_w2_a",
    "lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a", "a1.weight", "dora_scale", "on_input", "initial_norm",
    "dora_log_multiplier", "oft_R.clipped_oft", "oft_R.cans_oft", "vera_lambda_b", "lora_magnitude_vector",
    "lora_magnitude_vector.weight", "lora_embedding_A", "lora_embedding_B",
)  # fmt: skip
#: Of these, what a module may be called that PEFT saves whole.
AMBIGUOUS = ("a1.weight", "on_input", "initial_norm")


def square_blocks(file: AdapterFile, name: str, tensor: Tensor, dims: int) -> Tensor:
    """The tensor in float32 or better, if it is a stack of square matrices with that many dimensions.

    Raises:
        AdapterFileError: it is none.
    """
    shape = tensor.shape
    if tensor.dim() != dims or shape[-1] != shape[-2] or shape[-1] < 2 or not tensor.numel():
        refuse_shape(file.path, name, shape, f"{dims} dimensions, the last two alike and at least 2")
    return floating(file, name, tensor)


def floating(file: AdapterFile, name: str, tensor: Tensor) -> Tensor:
    """The tensor in float32, or float64 if it is that.

    Raises:
        AdapterFileError: it holds whole numbers.
    """
    if not tensor.is_floating_point():
        raise AdapterFileError(f"Tensor '{name}' of {file.path}", got=f"{tensor.dtype}", needed="floating point")
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def scale_of_rows(file: AdapterFile, name: str, tensor: Tensor, rows: int | None) -> Tensor:
    """A scale per output neuron as a vector, whatever dimensions of 1 it was stored with.

    Raises:
        AdapterFileError: it has another number of entries than ``rows``, or more than one real dimension.
    """
    if tensor.numel() != max(tensor.shape, default=0) or (rows is not None and tensor.numel() != rows):
        refuse_shape(file.path, name, tensor.shape, f"{rows} numbers" if rows else "one number per row")
    return floating(file, name, tensor).flatten()


def skew_vector(blocks: Tensor, factor: float = 1.0) -> Tensor:
    """``factor (A - Aᵀ)``, packed.

    Shapes: ``(..., b, b)`` -> ``(..., b (b - 1) / 2)``.

    Example:
        >>> skew_vector(torch.tensor([[[5.0, 3.0], [1.0, 7.0]]]), 0.5)
        tensor([[1.]])
    """
    return pack((blocks - blocks.mT) * factor)


def stands_for_all(file: AdapterFile, name: str, blocks: Tensor) -> bool:
    """Whether the config says that one block is shared.

    Raises:
        AdapterFileError: it does, and there are several.
    """
    shared = bool((file.config or {}).get("block_share"))
    if shared and blocks.shape[0] != 1:
        refuse_shape(file.path, name, blocks.shape, "one block, for the config has block_share")
    return shared


def within_ball(blocks: Tensor, radius: float) -> Tensor:
    """Each stored matrix brought back into a Frobenius ball around zero: the original COFT, on the raw matrix.

    Example:
        >>> within_ball(torch.full((1, 2, 2), 2.0), 1.0).norm().item()
        1.0
    """
    norm = torch.linalg.matrix_norm(blocks, keepdim=True)
    return torch.where(norm > radius, blocks * (radius / norm), blocks)


def refuse_foreign(file: AdapterFile, used: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Names of tensors that belong to no rotation; those of other methods are refused.

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
            do="The whole can only be loaded by the tool that wrote it",
        )
    return rest


def one_number(file: AdapterFile, name: str, tensor: Tensor) -> float:
    """A scalar.

    Raises:
        AdapterFileError: it is none, or negative.
    """
    if tensor.numel() != 1 or tensor.is_complex() or tensor.item() < 0:
        refuse_shape(file.path, name, tensor.shape, "one number, not negative")
    return float(tensor.item())


def check_butterfly(file: AdapterFile, name: str, blocks: Tensor, features: int) -> None:
    """Check that a butterfly's stages exist for so many features: each one doubles the reach of the one before.

    Raises:
        AdapterFileError: they do not.
    """
    stages, b = blocks.shape[0], blocks.shape[-1]
    if stages > 1 and (b % 2 or stages > 64 or features % (b << (stages - 1))):
        needed = f"an even block size that, doubled for each further stage, divides {features} features"
        refuse_shape(file.path, name, blocks.shape, needed)
