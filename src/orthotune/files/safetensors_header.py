"""The header of a safetensors file, which may be damaged or malicious; checked before memory is allocated."""

from __future__ import annotations

import json
import math
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import AdapterFileError
from orthotune.files.names import shortened

#: The largest header that the format permits, in bytes.
LARGEST_HEADER = 100_000_000
#: Bits per element, by the name of the dtype in a header. Other dtypes are not checked here.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_AGAIN = "Copy or download the file again"


@dataclass(frozen=True)
class Header:
    """The content of a header.

    Attributes:
        start: the byte of the file at which the first tensor begins.
        tensors: name -> ``dtype``, ``shape`` and ``data_offsets``, which count from ``start``.
        metadata: the text entries.
    """

    start: int
    tensors: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, str]


def check_header(path: Path) -> Header:
    """The header of a file, checked against the size of the file.

    Args:
        path: a safetensors file.

    Raises:
        AdapterFileError: the file is missing, truncated, too long, damaged or no safetensors file.

    Example:
        >>> list(check_header(Path("model.safetensors")).tensors)  # doctest: +SKIP
        ['lm_head.weight', 'model.embed_tokens.weight']
    """
    if path.is_dir() or not path.exists():
        raise AdapterFileError(f"There is no file {path}", do="Check the path; an adapter is a folder that holds it")
    raw, size = _raw_header(path)
    try:
        entries = json.loads(raw, object_pairs_hook=_without_repeats)
        metadata = entries.pop("__metadata__", None) or {}
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata that is no text")
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        promised = 8 + len(raw) + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise AdapterFileError(f"The header of {path} cannot be read", got=str(error), do=_AGAIN) from error
    if promised != size:
        what = "is cut off" if size < promised else "has bytes after its last tensor"
        raise AdapterFileError(f"{path} {what}", got=f"{size} bytes", needed=f"{promised} bytes", do=_AGAIN)
    for name, entry in entries.items():
        if fault := _fault(entry):
            got = f"{fault} for tensor {shortened([repr(name)[:120]])}"
            raise AdapterFileError(f"{path} is damaged", got=got, do=_AGAIN)
    _check_offsets(path, [entry["data_offsets"] for entry in entries.values()])
    return Header(8 + len(raw), entries, metadata)


def _raw_header(path: Path) -> tuple[bytes, int]:
    """The bytes of the header, and the size of the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise AdapterFileError(
                f"{path} is a Git LFS pointer, not the file itself", do="Fetch the file with: git lfs pull"
            )
        if len(start) < 8:
            raise AdapterFileError(
                f"{path} is cut off", got=f"{size} bytes", needed="at least a header of 8 bytes", do=_AGAIN
            )
        (length,) = struct.unpack("<Q", start)
        if length > LARGEST_HEADER:
            raise AdapterFileError(
                f"{path} is not a safetensors file", got=f"a header length of {length} bytes", do=_AGAIN
            )
        if 8 + length > size:
            raise AdapterFileError(
                f"{path} is cut off", got=f"{size} bytes", needed=f"{8 + length} bytes for the header alone", do=_AGAIN
            )
        return file.read(length), size


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without duplicate names, which readers treat differently."""
    entries = dict(pairs)
    if len(entries) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the name {twice[:80]!r} twice")
    return entries


def _fault(entry: Mapping[str, Any]) -> str | None:
    """A description of an impossible entry; None for a valid one."""
    shape: Any = entry.get("shape")
    offsets, dtype = entry["data_offsets"], entry.get("dtype")
    numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
    if len(numbers) < 2 or len(offsets) != 2 or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
        return f"shape {str(shape)[:60]} and bytes {str(offsets)[:60]}"
    bits = BITS.get(dtype) if isinstance(dtype, str) else None
    if not isinstance(dtype, str) or (bits and 8 * (offsets[1] - offsets[0]) != bits * math.prod(shape)):
        return f"shape {str(shape)[:60]} of type {str(dtype)[:20]} in {offsets[1] - offsets[0]} bytes"
    return None


def _check_offsets(path: Path, offsets: list[list[int]]) -> None:
    """Check that each byte belongs to exactly one tensor: tensors may not overlap or leave gaps."""
    position = 0
    for start, stop in sorted(offsets):
        if start != position or stop < start:
            raise AdapterFileError(
                f"{path} is damaged", got=f"a tensor in bytes {start} to {stop}, after one that ends at {position}",
                do=_AGAIN,
            )  # fmt: skip
        position = stop
