"""Single tensors of a safetensors file, read where they lie and written one after another."""

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

from orthotune.errors import AdapterFileError, OutputError
from orthotune.formats.safetensors_file import check_header

#: The number types that a weight can turn in, by their name in a header.
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
    """Where a tensor lies: ``size`` bytes from ``start`` of ``path``, numbers of ``dtype`` as the header calls it."""

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
        with self.path.open("rb", buffering=0) as file:
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
    check_header(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None) or {}
    entries = []
    for name, found in header.items():
        start, stop = found["data_offsets"]
        entries.append(Entry(name, found["dtype"], tuple(found["shape"]), path, 8 + length + start, stop - start))
    return sorted(entries, key=lambda entry: (entry.start, entry.size)), metadata


def write_file(
    path: Path, entries: Sequence[Entry], metadata: dict[str, str], changed: Callable[[Entry], Tensor | None]
) -> None:
    """A safetensors file of ``entries``, holding one of its tensors at a time.

    Args:
        path: the new file.
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
    with writing(path):
        file = path.open("wb", buffering=0)  # nothing is left for the moment of closing, when an error would be lost
    with file:
        _write(file, memoryview(len(text).to_bytes(8, "little") + text), path)
        for entry in entries:
            tensor = changed(entry)
            if tensor is None:
                _copy(entry, file, path)
            else:
                assert tensor.dtype == FLOATS[entry.dtype] and tuple(tensor.shape) == entry.shape
                _write(file, _bytes(tensor), path)
                del tensor  # before the next one is read


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(cast(Any, tensor.contiguous().view(-1).view(torch.uint8).numpy()))


def _write(file: FileIO, data: memoryview, path: Path) -> None:
    with writing(path):
        while len(data):
            data = data[file.write(data) :]


def _copy(entry: Entry, file: FileIO, path: Path) -> None:
    with entry.path.open("rb", buffering=0) as source:
        source.seek(entry.start)
        buffer, left = memoryview(bytearray(min(COPIED, entry.size))), entry.size
        while left:
            count = _some(source.readinto(buffer[: min(len(buffer), left)]), entry.path)
            _write(file, buffer[:count], path)
            left -= count


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says about writing to ``path``, as an error in words.

    Raises:
        OutputError: an OSError inside the block.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path.name} could not be written to {path.parent}",
            got=error.strerror or str(error),
            do="Free some space, or name another place",
        ) from error
