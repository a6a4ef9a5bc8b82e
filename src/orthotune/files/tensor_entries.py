"""Read single tensors of a safetensors file, and write a file with one tensor in memory at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.files.atomic import atomic_write
from orthotune.files.safetensors_header import check_header

#: The dtypes in which a weight can be rotated, by their name in a header.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: Bytes per copy operation.
COPIED = 1 << 23


class ReadBuffer:
    """Memory that is used again for each tensor: allocating new memory takes longer than reading the tensor.

    Example:
        >>> buffer = ReadBuffer()
        >>> buffer.take(8).data_ptr() == buffer.take(4).data_ptr()
        True
    """

    def __init__(self) -> None:
        self._raw = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """``size`` bytes; the bytes of the previous call are overwritten."""
        if len(self._raw) < size:
            self._raw = torch.empty(0, dtype=torch.uint8)  # releases the previous memory first
            self._raw = torch.empty(size, dtype=torch.uint8)
        return self._raw[:size]


@dataclass(frozen=True)
class Entry:
    """The position of a tensor: ``size`` bytes from byte ``start`` of ``path``; ``dtype`` is the name in the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int

    def read(self, buffer: ReadBuffer | None = None) -> Tensor:
        """The tensor, in new memory, or in ``buffer`` until the buffer is used again.

        Raises:
            AdapterFileError: the dtype is not a floating-point dtype of :data:`FLOATS`, or the file ends too early.
        """
        if self.dtype not in FLOATS or self.size != math.prod(self.shape) * FLOATS[self.dtype].itemsize:
            raise AdapterFileError(
                f"tensor '{self.name}' of {self.path}", got=f"type {self.dtype}, shape {list(self.shape)}",
                needed=f"plain numbers of type {', '.join(FLOATS)}",
            )  # fmt: skip
        raw = torch.empty(self.size, dtype=torch.uint8) if buffer is None else buffer.take(self.size)
        with _reading(self.path), self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            view, done = _bytes(raw), 0
            while done < self.size:
                done += _some(file.readinto(view[done:]), self.path)
        return raw.view(FLOATS[self.dtype]).view(self.shape)


def _some(count: int | None, path: Path) -> int:
    if not count:
        raise AdapterFileError(f"{path} became shorter while it was read", do="Let nothing else write to it")
    return count


def read_header(path: Path) -> tuple[list[Entry], dict[str, str]]:
    """The position of each tensor of a file, in the order of the file, and the metadata.

    Raises:
        AdapterFileError: the file is missing, truncated or no safetensors file.

    Example:
        >>> read_header(Path("model.safetensors"))  # doctest: +SKIP
        ([Entry(name='lm_head.weight', dtype='BF16', ...), ...], {'format': 'pt'})
    """
    header = check_header(path)
    entries = []
    for name, entry in header.tensors.items():
        start, stop = entry["data_offsets"]
        entries.append(Entry(name, entry["dtype"], tuple(entry["shape"]), path, header.start + start, stop - start))
    return sorted(entries, key=lambda entry: (entry.start, entry.size)), dict(header.metadata)


def write_file(
    path: Path, entries: Sequence[Entry], metadata: dict[str, str], changed: Callable[[Entry], Tensor | None]
) -> None:
    """Write a safetensors file atomically, with one tensor in memory at a time.

    Args:
        path: the file; an existing file is replaced.
        entries: the tensors, in this order; names may be new, the bytes are copied from the position of the entry.
        metadata: text for the header.
        changed: new values for an entry, in its dtype and shape, or None to copy its bytes.

    Raises:
        OutputError: the file cannot be written, or the disk is full.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for entry in entries:
        offsets = [position, position + entry.size]
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        position += entry.size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as partial, partial.open("wb", buffering=0) as file:
        # Unbuffered, because an error while closing the file would be lost.
        _write(file, memoryview(len(text).to_bytes(8, "little") + text))
        for entry in entries:
            tensor = changed(entry)
            if tensor is None:
                _copy(entry, file)
            else:
                assert tensor.dtype == FLOATS[entry.dtype] and tuple(tensor.shape) == entry.shape
                _write(file, _bytes(tensor))
                del tensor  # before the next one is read


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(cast(Any, tensor.contiguous().view(-1).view(torch.uint8).numpy()))


def _write(file: FileIO, data: memoryview) -> None:
    while len(data):
        data = data[file.write(data) :]


def _copy(entry: Entry, file: FileIO) -> None:
    with _reading(entry.path):
        source = entry.path.open("rb", buffering=0)
    with source:
        source.seek(entry.start)
        buffer, left = memoryview(bytearray(min(COPIED, entry.size))), entry.size
        while left:
            with _reading(entry.path):
                count = _some(source.readinto(buffer[: min(len(buffer), left)]), entry.path)
            _write(file, buffer[:count])
            left -= count


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Context manager for reading ``path`` while another file is written: an error names ``path``, not that file."""
    try:
        yield
    except OSError as error:
        got = error.strerror or str(error)
        raise AdapterFileError(f"{path} cannot be read", got=got, do="Copy or download the file again") from error
