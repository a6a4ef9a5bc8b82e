"""The files of a base model: a model folder, a diffusers pipeline, or one file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthotune.errors import AdapterFileError
from orthotune.files.json_file import read_json
from orthotune.files.names import is_file_name
from orthotune.files.tensor_entries import read_header
from orthotune.formats.base_weights import INSIDE
from orthotune.operations.checkpoint.model_folder import Checkpoint, Shard, open_checkpoint
from orthotune.operations.fitting.components import ADAPTED


@dataclass
class Part:
    """One checkpoint of a base.

    Attributes:
        component: name in the pipeline; "" for a base that is one model.
        place: folder below the output, "." for the output itself.
        transformers: whether ``config.json`` describes a transformers model, whose tensors may have other names than
        its
            parameters; otherwise the names are equal.
    """

    component: str
    place: Path
    checkpoint: Checkpoint
    transformers: bool = False

    def prefixes(self) -> dict[str, str]:
        """Component -> prefix of its tensors' names; one file may hold several components."""
        names = list(self.checkpoint.entries())
        found = {
            component: prefix for prefix, component in INSIDE.items() if any(name.startswith(prefix) for name in names)
        }
        return found if found and not self.component else {self.component: ""}

    def rows(self) -> dict[str, dict[str, int]]:
        """Component -> module -> rows of its weight."""
        entries, found = self.checkpoint.entries(), dict[str, dict[str, int]]()
        for component, prefix in self.prefixes().items():
            found[component] = {
                name.removeprefix(prefix).removesuffix(".weight"): entry.shape[0]
                for name, entry in entries.items()
                if name.startswith(prefix) and name.endswith(".weight") and len(entry.shape) > 1
            }
        return found


@dataclass
class Base:
    """A base model on disk: its checkpoints, and its other files with their paths below the output."""

    path: Path
    parts: list[Part]
    companions: list[tuple[Path, Path]] = field(default_factory=list)

    @property
    def single_file(self) -> bool:
        """Whether the base is one file, not a folder."""
        return self.path.is_file()

    def rows(self) -> dict[str, dict[str, int]]:
        """Component -> module -> rows of its weight, of all checkpoints."""
        return {component: own for part in self.parts for component, own in part.rows().items()}


def open_base(path: str | Path) -> Base:
    """Open the base at a path; only headers and configs are read.

    Raises:
        AdapterFileError: there is no model at the path, or one of its files is damaged.

    Example:
        >>> [part.component for part in open_base("stable-diffusion-v1-5").parts]  # doctest: +SKIP
        ['text_encoder', 'unet']
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise AdapterFileError(f"the base {path}", needed="a .safetensors file, or a folder", do="Convert it first")
        return Base(path, [Part("", Path(), Checkpoint(path.parent, [Shard(path.name, *read_header(path))]))])
    if (path / "model_index.json").is_file():
        return _pipeline(path)
    checkpoint = open_checkpoint(path)
    transformers = "_class_name" not in _json(path / "config.json")
    beside = [(file, Path(file.name)) for file in checkpoint.companions()]
    return Base(path, [Part("", Path(), checkpoint, transformers)], beside)


def _pipeline(path: Path) -> Base:
    index = _json(path / "model_index.json")
    parts, taken = [], set()
    for name, value in sorted(index.items()):
        known = isinstance(value, list) and name.startswith(ADAPTED) and (path / name / "config.json").is_file()
        if known and is_file_name(name):
            part = Part(name, Path(name), open_checkpoint(path / name))
            parts.append(part)
            taken |= {path / name / shard.name for shard in part.checkpoint.shards}
            taken.add(path / name / part.checkpoint.index_name)
    if not parts:
        raise AdapterFileError(
            f"{path} has no component that can carry an adapter", needed=f"one of {', '.join(ADAPTED)}"
        )
    own = {path / part.component for part in parts}
    # A second set of weights of an adapted component (another dtype, a pickle) is not copied: it would stay unmerged.
    weights = {".safetensors", ".bin", ".ckpt", ".pt", ".msgpack", ".h5"}
    files = [
        file for file in sorted(path.rglob("*"))
        if file.is_file() and file not in taken and not any(p.startswith(".") for p in file.relative_to(path).parts)
        and not (file.parent in own and (file.suffix in weights or ".index." in file.name))
        and not (file.parent == path and file.suffix in weights)
    ]  # fmt: skip
    return Base(path, parts, [(file, file.relative_to(path)) for file in files])


def _json(path: Path) -> dict[str, Any]:
    return read_json(path, error=AdapterFileError, do="Copy or download it again")
