"""Open an adapter file: names and shapes first, tensors when they are needed. No code from the file is executed."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.files import safetensors_header
from orthotune.files.json_file import read_json
from orthotune.files.run_adapter import adapter_in
from orthotune.files.safetensors_file import refuse_non_finite
from orthotune.formats.peft import config_types

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"
#: File names of the weights in a folder, in the order in which they are looked for.
WEIGHTS_NAMES = (WEIGHTS_NAME, "adapter_model.bin", "pytorch_oft_weights.safetensors", "pytorch_oft_weights.bin")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

#: A file with more tensors or a larger header is not an adapter; reading its names would need too much memory.
MOST_TENSORS, LARGEST_HEADER = 100_000, 1 << 24
LARGEST_CONFIG = 1 << 24
PLAIN = (torch.strided, "cpu")
#: Errors of safetensors for dtypes that torch does not have.
UNREADABLE = (KeyError, ValueError, TypeError, RuntimeError, AttributeError)


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file that was opened; its tensors are not read yet.

    Attributes:
        path: the file with the weights.
        shapes: name -> shape of each tensor.
        load: reads the tensors of the given names.
        config: the content of ``adapter_config.json``; None for a file without a config.
        metadata: the text entries of the header.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    load: Callable[[list[str]], dict[str, Tensor]]
    config: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The named tensors, on the CPU, checked for NaN and infinity.

        Raises:
            AdapterFileError: a tensor cannot be read, or holds NaN or infinity.
        """
        tensors = self.load(list(names))
        refuse_non_finite(tensors, self.path)
        return tensors

    def layers(self, suffixes: str) -> dict[str, dict[str, str]]:
        """Layer -> suffix -> name of the tensor, for names that end in one of the suffixes, a regular expression.

        Example:
            >>> file = AdapterFile(Path("a"), {"lin.alpha": (), "lin.oft_blocks": (2, 3, 3), "b": ()}, lambda names: {})
            >>> file.layers("oft_blocks|alpha")
            {'lin': {'alpha': 'lin.alpha', 'oft_blocks': 'lin.oft_blocks'}}
        """
        pattern = re.compile(rf"(.+)\.({suffixes})", re.DOTALL)
        found: dict[str, dict[str, str]] = {}
        for name in self.shapes:
            if match := pattern.fullmatch(name):
                found.setdefault(match[1], {})[match[2]] = name
        return found

    def has(self, suffixes: str, dims: int | None = None) -> bool:
        """Whether a tensor ends in one of the suffixes.

        Args:
            suffixes: a regular expression.
            dims: number of dimensions that the tensor must have; any number if None.
        """
        named = [name for layer in self.layers(suffixes).values() for name in layer.values()]
        return any(dims is None or len(self.shapes[name]) == dims for name in named)


def open_adapter(path: str | Path) -> AdapterFile:
    """Open the adapter in a folder, in a run directory, or in a single file.

    Raises:
        AdapterFileError: there is no adapter, or the file is damaged, of an unknown kind, has too many tensors, or is a
            pickle that holds more than tensors.

    Example:
        >>> open_adapter("runs/demo/adapter").shapes  # doctest: +SKIP
        {'base_model.model.lin.oft_R.weight': (3, 28)}
    """
    path = adapter_in(path)
    if not path.exists():
        raise AdapterFileError(f"There is no adapter at {path}", do="Check the path")
    if path.is_dir():
        config = read_config(path) if (path / CONFIG_NAME).is_file() else None
        found = [path / name for name in WEIGHTS_NAMES if (path / name).is_file()]
        if not found and config is None:
            raise AdapterFileError(f"{path} is not an adapter", needed=f"a folder with {CONFIG_NAME}, or a file")
        return _open_file(found[0] if found else path / WEIGHTS_NAME, config)
    if path.name == CONFIG_NAME:
        raise AdapterFileError(f"{path} is the config alone", do="Name its folder")
    beside = path.parent / CONFIG_NAME
    return _open_file(path, read_config(path.parent) if path.name in WEIGHTS_NAMES and beside.is_file() else None)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's config as a plain mapping.

    Raises:
        AdapterFileError: there is no config, it is not a JSON object, or a field has a value of the wrong type.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterFileError(f"{folder} is not an adapter", needed=f"a folder with {CONFIG_NAME}")
    if path.stat().st_size > LARGEST_CONFIG:
        raise AdapterFileError(f"{path} is not a config", got=f"{path.stat().st_size} bytes")
    config = read_json(path, error=AdapterFileError, do="Copy or download the file again")
    if wrong := config_types.fault(config):
        raise AdapterFileError(f"{wrong[0]} in {path}", got=wrong[1], needed=wrong[2])
    return config


def numbers_in(folder: Path) -> int | None:
    """The number of elements in the weights of an adapter folder, read from the header; None without weights.

    Raises:
        AdapterFileError: as :func:`open_adapter`.

    Example:
        >>> numbers_in(Path("no/such/folder")) is None
        True
    """
    if not any((folder / name).is_file() for name in WEIGHTS_NAMES):
        return None
    return sum(math.prod(shape) for shape in open_adapter(folder).shapes.values())


def _open_file(path: Path, config: Mapping[str, Any] | None) -> AdapterFile:
    return _open_pickle(path, config) if path.suffix in PICKLES else _open_safetensors(path, config)


def _open_safetensors(path: Path, config: Mapping[str, Any] | None) -> AdapterFile:
    if path.is_file():
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if LARGEST_HEADER < length <= safetensors_header.LARGEST_HEADER:
            raise AdapterFileError(
                f"{path} is not an adapter", got=f"a header of {length} bytes", needed=f"at most {LARGEST_HEADER}"
            )
    safetensors_header.check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    _check_count(path, len(shapes))

    def load(names: list[str]) -> dict[str, Tensor]:
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in names}
        except (SafetensorError, OSError, *UNREADABLE) as error:
            raise _damaged(path, error) from error

    return AdapterFile(path, shapes, load, config, metadata)


def _open_pickle(path: Path, config: Mapping[str, Any] | None) -> AdapterFile:
    size, save = path.stat().st_size, "Save it as safetensors"
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise AdapterFileError(
            f"{path} is no pickle that torch wrote since 1.6", got=str(error), needed="an uncompressed zip", do=save
        ) from error
    # torch never compresses: an archive that unpacks to more bytes than the file has is a zip bomb.
    if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
        raise AdapterFileError(f"{path} is a pickle in a compressed archive", needed="what torch.save writes", do=save)
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # a complete checkpoint may be large
    except Exception as error:  # the unpickler can raise any error for damaged or malicious bytes
        raise AdapterFileError(
            f"{path} is a pickle that holds more than tensors, or is damaged", got=_met(error),
            needed="tensors by name", do=f"No code in it was run. {save}",
        ) from error  # fmt: skip
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    plain = isinstance(found, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and (tensor.layout, tensor.device.type) == PLAIN
        for name, tensor in found.items()
    )
    if not plain:
        raise AdapterFileError(f"{path} is a pickle of other things than tensors", needed="tensors by name", do=save)
    _check_count(path, len(found))
    # A view may have far more elements than its storage; copying it would fill the memory.
    if sum(tensor.numel() * tensor.element_size() for tensor in found.values()) > 2 * size:
        raise AdapterFileError(f"{path} is a pickle whose tensors are larger than the file", do=save)
    tensors = {name: tensor.detach() for name, tensor in found.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return AdapterFile(path, shapes, lambda names: {name: tensors[name] for name in names}, config)


def _met(error: Exception) -> str:
    """What the unpickler found. The message of torch is not shown, because it explains how to run the file anyway."""
    if found := re.search(r"GLOBAL ([\w.]{1,100})", str(error)):
        return f"a call of {found[1]}"
    return type(error).__name__


def _check_count(path: Path, count: int) -> None:
    if count > MOST_TENSORS:
        raise AdapterFileError(f"{path} is not an adapter", got=f"{count} tensors", needed=f"at most {MOST_TENSORS}")


def _damaged(path: Path, error: BaseException) -> AdapterFileError:
    return AdapterFileError(f"{path} is damaged", got=str(error), do="Copy or download the file again")


def refuse_shape(path: Path, name: str, shape: Iterable[int], needed: str) -> None:
    """Raise the error for a tensor with a wrong shape.

    Args:
        path: the file.
        name: of the tensor.
        shape: of the tensor.
        needed: the expected shape, for the message.

    Raises:
        AdapterFileError: always.
    """
    raise AdapterFileError(f"Tensor '{name}' of {path}", got=f"shape {list(shape)}", needed=needed)
