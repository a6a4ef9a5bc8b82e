"""A folder with a saved model: the file of each tensor, and the other files."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import AdapterFileError
from orthotune.files.json_file import read_json, read_json_list
from orthotune.files.names import is_file_name, shortened
from orthotune.files.tensor_entries import Entry, read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: Names of weight files before ``.safetensors``: of transformers, and of diffusers.
STEMS = ("model", "diffusion_pytorch_model")
#: Suffixes of weight files in any format: a merged folder must not contain the unmerged weights.
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}

#: Files that say something of the base's weights alone: how they are quantized, and an adapter beside them.
OF_WEIGHTS = {"quantize_config.json", "quant_config.json", "hf_quant_config.json", "adapter_config.json"}


@dataclass
class Shard:
    """One weight file: its tensors in the order of their bytes."""

    name: str
    entries: list[Entry]
    metadata: dict[str, str]


@dataclass
class Checkpoint:
    """A model in one or several safetensors files; several have the content of their index file in ``index``."""

    folder: Path
    shards: list[Shard]
    index: dict[str, Any] | None = None
    index_name: str = INDEX

    def entries(self) -> dict[str, Entry]:
        """Every tensor by its name."""
        return {entry.name: entry for shard in self.shards for entry in shard.entries}

    def companions(self) -> list[Path]:
        """The files and folders of the model that are not its weights, see :func:`companions_in`."""
        return companions_in(self.folder)


def companions_in(folder: Path) -> list[Path]:
    """What a merged model takes over from the folder of its base: everything but the weights that are merged.

    Files of the folder: config, tokenizer, processors, templates. Its folders: those without weights, and those that
    the ``modules.json`` of a sentence encoder names, as pooling and dense layers. Other folders hold the same weights
    in another form, unmerged, or checkpoints.

    Args:
        folder: of a saved model.

    Example:
        >>> [path.name for path in companions_in(Path("models/encoder"))]  # doctest: +SKIP
        ['1_Pooling', 'config.json', 'modules.json', 'tokenizer.json']
    """
    found = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in OF_WEIGHTS]
    files = [p for p in found if p.is_file() and p.suffix not in WEIGHTS and not p.name.endswith(".index.json")]
    named = _modules(folder)
    folders = [p for p in found if p.is_dir() and (p.name in named or not any(_weight_files(p)))]
    return sorted(files + folders)


def copy_missing(base: Path, out: Path) -> None:
    """Copy what :func:`companions_in` finds in ``base`` and ``out`` does not have.

    Args:
        base: folder of the base.
        out: folder of the merged model, saved by its library.
    """
    for path in companions_in(base):
        target = out / path.name
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True)
        elif not target.exists():
            shutil.copyfile(path, target)


def _weight_files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.suffix in WEIGHTS)


def _modules(folder: Path) -> set[str]:
    """The folders that sentence-transformers reads parts of the model from."""
    path = folder / "modules.json"
    entries: Any = read_json_list(path, error=AdapterFileError) if path.is_file() else []
    return {str(entry.get("path", "")).partition("/")[0] for entry in entries if isinstance(entry, dict)} - {""}


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Open the checkpoint in a folder; only headers are read.

    Raises:
        AdapterFileError: there is no config or no safetensors file, or a shard is missing, is damaged, or lacks a
        tensor
            that the index names.

    Example:
        >>> open_checkpoint("models/llama").shards[0].name  # doctest: +SKIP
        'model-00001-of-00004.safetensors'
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise AdapterFileError(
            f"{folder} is not a saved model", needed="a folder with config.json and safetensors files",
            do="Check the path; a model on the hub must be downloaded first",
        )  # fmt: skip
    index_path, single = _weights(folder)
    if index_path is not None:
        index = _read_index(index_path)
        names = sorted(set(index["weight_map"].values()))
    elif single is not None:
        index, names = None, [single.name]
    else:
        others = [path.name for path in sorted(folder.iterdir()) if path.suffix in WEIGHTS]
        raise AdapterFileError(
            f"{folder} holds no {SINGLE} and no {INDEX}", got=shortened(others) or "no weights at all",
            do="Save the model again with save_pretrained, or merge without --stream",
        )  # fmt: skip
    index_name = index_path.name if index_path is not None else INDEX
    checkpoint = Checkpoint(folder, [Shard(name, *read_header(folder / name)) for name in names], index, index_name)
    if index is not None:
        found = {entry.name: shard.name for shard in checkpoint.shards for entry in shard.entries}
        lost = [name for name, shard in index["weight_map"].items() if found.get(name) != shard]
        if lost:
            raise AdapterFileError(
                f"{folder / index_name} does not fit its files",
                got=f"{len(lost)} tensors that are not in the file that the index names: {shortened(lost)}",
                do="Copy or download the folder again",
            )  # fmt: skip
    return checkpoint


def _weights(folder: Path) -> tuple[Path | None, Path | None]:
    """The index or the only weight file; a variant such as ``fp16`` only if there is no other."""
    for stem in STEMS:
        name = f"{stem}.safetensors.index"
        for index in (folder / f"{name}.json", *sorted(folder.glob(f"{name}.*.json"))):
            if index.is_file():
                return index, None
        for single in (folder / f"{stem}.safetensors", *sorted(folder.glob(f"{stem}.*.safetensors"))):
            if single.is_file():
                return None, single
    return None, None


def _read_index(path: Path) -> dict[str, Any]:
    again = "Copy or download it again"
    index = read_json(path, error=AdapterFileError, do=again)
    names = index.get("weight_map")
    if not isinstance(names, dict):
        raise AdapterFileError(f"{path}", got="no weight_map", do=again)
    # A name that leads out of the folder would be read, and later written, outside of it.
    if wrong := [name for name in names.values() if not is_file_name(name)]:
        raise AdapterFileError(
            f"{path}", got=f"a shard whose name is not a file name: {ascii(wrong[0])[:80]}", do=again
        )
    return index
