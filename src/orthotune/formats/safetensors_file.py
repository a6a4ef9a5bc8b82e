"""Opening a safetensors file that may be damaged: every fault is worded and names the file or the tensor."""

from __future__ import annotations

import json
import math
import os
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from orthotune.errors import AdapterFileError, OutputError

#: The format's own limit for its header, in bytes.
LARGEST_HEADER = 100_000_000
#: Bits of one number, by the name of its type in a header. Types that are not here are left to who reads them.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


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
        entries = json.loads(raw, object_pairs_hook=_without_repeats)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        promised = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise AdapterFileError(f"The header of {path} cannot be read", got=str(error), do=again) from error
    if promised != size:
        what = "is cut off" if size < promised else "has bytes after its last tensor"
        raise AdapterFileError(f"{path} {what}", got=f"{size} bytes", needed=f"{promised} bytes", do=again)
    for name, entry in entries.items():
        if name != "__metadata__" and (fault := _fault(entry)):
            raise AdapterFileError(
                f"{path} is damaged", got=f"{fault} for tensor {shortened([repr(name)[:120]])}", do=again
            )
    _check_places(path, [entry["data_offsets"] for name, entry in entries.items() if name != "__metadata__"])


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; with a name twice, which of the two is meant would depend on who reads it."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice[:80]!r} twice")
    return found


def _fault(entry: Mapping[str, Any]) -> str | None:
    """What in an entry of a header cannot be, before memory is asked for on its word."""
    shape: Any = entry.get("shape")
    offsets, dtype = entry["data_offsets"], entry.get("dtype")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if len(numbers) < 2 or len(offsets) != 2 or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        return f"shape {str(shape)[:60]} and bytes {str(offsets)[:60]}"
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if not isinstance(dtype, str) or (bits and 8 * (offsets[1] - offsets[0]) != bits * math.prod(shape)):
        return f"shape {str(shape)[:60]} of type {str(dtype)[:20]} in {offsets[1] - offsets[0]} bytes"
    return None


def _check_places(path: Path, places: list[list[int]]) -> None:
    """Each byte belongs to one tensor: places that overlap or leave gaps are none that a writer makes."""
    position = 0
    for start, stop in sorted(places):
        if start != position or stop < start:
            raise AdapterFileError(
                f"{path} is damaged", got=f"a tensor in bytes {start} to {stop}, after one that ends at {position}",
                do="Copy or download the file again",
            )  # fmt: skip
        position = stop


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
