"""Read or write a complete safetensors file. Errors name the file or the tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from orthotune.errors import AdapterFileError
from orthotune.files.atomic import atomic_write
from orthotune.files.names import shortened
from orthotune.files.safetensors_header import check_header


def read_tensors(path: str | Path, *, finite: bool = True) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU, in the stored dtype.

    Args:
        path: the file.
        finite: refuse NaN and infinity.

    Raises:
        AdapterFileError: the file is missing, truncated, damaged, no safetensors file, or (``finite``) holds NaN or
            inf.

    Example:
        >>> read_tensors("adapter_model.safetensors")  # doctest: +SKIP
        {'base_model.model.lin.oft_R.weight': tensor(...)}
    """
    path = Path(path)
    check_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise AdapterFileError(f"{path} is damaged", got=str(error), do="Copy or download the file again") from error
    if finite:
        refuse_non_finite(tensors, path)
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file atomically.

    Args:
        path: the file; an existing file is replaced.
        tensors: name -> tensor, on any device; two tensors may share memory.
        metadata: text for the header.

    Returns:
        ``path``.

    Raises:
        OutputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = write_tensors(Path(tempfile.mkdtemp(), "a.safetensors"), {"v": torch.ones(2)})
        >>> read_tensors(path)
        {'v': tensor([1., 1.])}
    """
    unshared: dict[str, torch.Tensor] = {}
    memory: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().to("cpu").contiguous()
        address = tensor.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, but two layers may share a tensor.
        unshared[name] = tensor.clone() if address in memory else tensor
        memory.add(address)
    with atomic_write(path) as partial:
        save_file(unshared, partial, dict(metadata or {}) or None)
        if metadata and len(metadata) > 1:
            _sort_metadata(partial)
    return path


def _sort_metadata(path: Path) -> None:
    """Bring the entries of the header into the order of their names: safetensors writes them in another each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        if len(text) <= size:  # the place of the tensors must not change
            file.seek(8)
            file.write(text.ljust(size))


def refuse_non_finite(tensors: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Raise an error that names the tensors with NaN or infinity.

    Args:
        tensors: name -> tensor, of any shape; integer tensors are skipped.
        source: origin of the tensors, for the message.

    Raises:
        AdapterFileError: a value is not finite.

    Example:
        >>> refuse_non_finite({"v": torch.ones(2)}, "adapter")
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    # isfinite() is not implemented for types of one byte
    bad = [n for n, t in floats.items() if not (t if t.element_size() > 1 else t.float()).isfinite().all()]
    if bad:
        raise AdapterFileError(
            f"{source} holds NaN or infinity",
            got=f"in {len(bad)} of {len(tensors)} tensors: {shortened(bad)}",
            do="Its training diverged: take an earlier checkpoint, or train again with a lower learning rate",
        )
