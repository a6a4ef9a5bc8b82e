"""Single tensors of a safetensors file, read from their place in the file and written one after another."""

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

#: The number types that a weight can be rotated in, by their name in a header.
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
#: Bytes that are copied at once.
COPIED = 1 << 23


class Room:
    """Memory that tensors are read into one after another: fresh memory for each costs more than reading it.

    Example:
        >>> room = Room()
        >>> room.take(8).data_ptr() == room.take(4).data_ptr()
        True
    """

    def __init__(self) -> None:
        self._raw = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """``size`` bytes; what was taken before is written over."""
        if len(self._raw) < size:
            self._raw = torch.empty(0, dtype=torch.uint8)  # lets go of the old ones first
            self._raw = torch.empty(size, dtype=torch.uint8)
        return self._raw[:size]


@dataclass(frozen=True)
class Entry:
    """Where a tensor is stored: ``size`` bytes from ``start`` of ``path``; ``dtype`` is the name in the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    size: int

    def read(self, room: Room | None = None) -> Tensor:
        """The tensor, in memory of its own, or in ``room`` until that is taken again.

        Raises:
            AdapterFileError: its numbers are no plain floating-point numbers, or the file ends before it does.
        """
        if self.dtype not in FLOATS or self.size != math.prod(self.shape) * FLOATS[self.dtype].itemsize:
            raise AdapterFileError(
                f"tensor '{self.name}' of {self.path}", got=f"type {self.dtype}, shape {list(self.shape)}",
                needed=f"plain numbers of type {', '.join(FLOATS)}",
            )  # fmt: skip
        raw = torch.empty(self.size, dtype=torch.uint8) if room is None else room.take(self.size)
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
    """Where each tensor of a file lies, in the order of its bytes, and the file's metadata.

    Raises:
        AdapterFileError: the file is missing, cut off or no safetensors file.

    Example:
        >>> read_header(Path("model.safetensors"))  # doctest: +SKIP
        ([Entry(name='lm_head.weight', dtype='BF16', ...), ...], {'format': 'pt'})
    """
    header = check_header(path)
    entries = []
    for name, found in header.tensors.items():
        start, stop = found["data_offsets"]
        entries.append(Entry(name, found["dtype"], tuple(found["shape"]), path, header.start + start, stop - start))
    return sorted(entries, key=lambda entry: (entry.start, entry.size)), dict(header.metadata)


def write_file(
    path: Path, entries: Sequence[Entry], metadata: dict[str, str], changed: Callable[[Entry], Tensor | None]
) -> None:
    """Write a safetensors file of ``entries``, complete or not at all, with one of its tensors in memory at a time.

    Args:
        path: the file; what is there is replaced.
        entries: what is in it, in this order; names may be new, the bytes come from where the entry points.
        metadata: text that goes into the header.
        changed: other numbers for an entry, of its dtype and shape, or None to copy its bytes.

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
        # Unbuffered: nothing is left for the moment of closing, when an error would be lost.
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
    """Within it, an error of the system is one about ``path``, not about the file that is being written."""
    try:
        yield
    except OSError as error:
        got = error.strerror or str(error)
        raise AdapterFileError(f"{path} cannot be read", got=got, do="Copy or download the file again") from error
