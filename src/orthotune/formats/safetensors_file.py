"""Opening a safetensors file that may be damaged: every fault is worded and names the file or the tensor."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from orthotune.errors import AdapterFileError, OutputError

#: The format's own limit for its header, in bytes.
LARGEST_HEADER = 100_000_000


def read_tensors(path: str | Path, *, finite: bool = True) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, on the CPU, in the dtype in which they were stored.

    Raises:
        AdapterFileError: the file is missing, cut off, altered, no safetensors file, or (``finite``) holds NaN or inf.

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
    """A new safetensors file, which appears when it is whole; a file that is there is replaced.

    Raises:
        OutputError: the place cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Copies, for tensors that share their memory are refused: two layers may hold one tensor.
        own = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        save_file(own, partial, dict(metadata or {}) or None)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path.name} could not be written to {path.parent}", got=getattr(error, "strerror", None) or str(error),
            do="Free some space, or name another place",
        ) from error  # fmt: skip
    finally:
        partial.unlink(missing_ok=True)
    return path


def check_header(path: Path) -> None:
    """Compare the sizes that the header announces with the size of the file.

    Raises:
        AdapterFileError: as for ``read_tensors``, before any tensor is read.
    """
    again = "Copy or download the file again"
    if path.is_dir() or not path.exists():
        raise AdapterFileError(f"There is no file {path}", do="Check the path; an adapter is a folder that holds it")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise AdapterFileError(
                f"{path} is a Git LFS pointer, not the file itself", do="Fetch the file with: git lfs pull"
            )
        if len(start) < 8:
            raise AdapterFileError(
                f"{path} is cut off", got=f"{size} bytes", needed="at least a header of 8 bytes", do=again
            )
        (length,) = struct.unpack("<Q", start)
        if length > LARGEST_HEADER:
            raise AdapterFileError(
                f"{path} is not a safetensors file", got=f"a header length of {length} bytes", do=again
            )
        if 8 + length > size:
            raise AdapterFileError(
                f"{path} is cut off", got=f"{size} bytes", needed=f"{8 + length} bytes for the header alone", do=again
            )
        raw = file.read(length)
    try:
        entries = json.loads(raw)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        promised = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise AdapterFileError(f"The header of {path} cannot be read", got=str(error), do=again) from error
    if promised != size:
        what = "is cut off" if size < promised else "has bytes after its last tensor"
        raise AdapterFileError(f"{path} {what}", got=f"{size} bytes", needed=f"{promised} bytes", do=again)


def refuse_non_finite(tensors: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Refuse NaN and infinity, naming the tensors that hold them.

    Raises:
        AdapterFileError: some value is not finite.

    Example:
        >>> refuse_non_finite({"v": torch.ones(2)}, "adapter")
    """
    floats = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    # torch asks numbers of one byte nothing
    bad = [n for n, t in floats.items() if not (t if t.element_size() > 1 else t.float()).isfinite().all()]
    if bad:
        raise AdapterFileError(
            f"{source} holds NaN or infinity",
            got=f"in {len(bad)} of {len(tensors)} tensors: {shortened(bad)}",
            do="Its training diverged: take an earlier checkpoint, or train again with a lower learning rate",
        )


def shortened(names: Iterable[str], count: int = 3) -> str:
    """The first names and how many more there are.

    Example:
        >>> shortened(["a", "b", "c"], count=2)
        'a, b and 1 more'
    """
    names = list(names)
    text = ", ".join(names[:count])
    return text if len(names) <= count else f"{text} and {len(names) - count} more"
