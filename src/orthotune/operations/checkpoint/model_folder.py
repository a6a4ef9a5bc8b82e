"""A folder with a saved model: which tensor lies where, and what else is in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import AdapterFileError
from orthotune.files.json_file import read_json
from orthotune.files.names import is_file_name, shortened
from orthotune.files.tensor_entries import Entry, read_header

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: What the weights are called before ``.safetensors``: by transformers, and by diffusers.
STEMS = ("model", "diffusion_pytorch_model")
#: Files that hold weights, in this or another format: a merged folder must not carry the old ones along.
WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".onnx"}


@dataclass
class Shard:
    """One weight file: its tensors in the order of their bytes."""

    name: str
    entries: list[Entry]
    metadata: dict[str, str]


@dataclass
class Checkpoint:
    """A model in safetensors files, one or several, with ``index`` as it was read when there are several."""

    folder: Path
    shards: list[Shard]
    index: dict[str, Any] | None = None
    index_name: str = INDEX

    def entries(self) -> dict[str, Entry]:
        """Every tensor by its name."""
        return {entry.name: entry for shard in self.shards for entry in shard.entries}

    def companions(self) -> list[Path]:
        """What belongs to the model and is no weight: config, tokenizer, templates."""
        found = [p for p in self.folder.iterdir() if p.is_file() and not p.name.startswith(".")]
        found = [p for p in found if p.suffix not in WEIGHTS and not p.name.endswith(".index.json")]
        return sorted(found + [p for p in self.folder.glob("additional_chat_templates") if p.is_dir()])


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """The checkpoint in a folder; reads headers only.

    Raises:
        AdapterFileError: there is no config, no safetensors file, a shard is missing, damaged, or lacks a tensor that
        the index promises.

    Example:
        >>> open_checkpoint("models/llama").shards[0].name  # doctest: +SKIP
        'model-00001-of-00004.safetensors'
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise AdapterFileError(
            f"{folder} is no saved model", needed="a folder with config.json and safetensors files",
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
                got=f"{len(lost)} tensors elsewhere: {shortened(lost)}",
                do="Copy or download the folder again",
            )  # fmt: skip
    return checkpoint


def _weights(folder: Path) -> tuple[Path | None, Path | None]:
    """The index, or the only file; a variant such as ``fp16`` when there is nothing else."""
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
    # A name that leads out of the folder would be read, and later written, elsewhere.
    if wrong := [name for name in names.values() if not is_file_name(name)]:
        raise AdapterFileError(f"{path}", got=f"a shard that is no file name: {ascii(wrong[0])[:80]}", do=again)
    return index
