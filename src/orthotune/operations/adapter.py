"""An adapter file that is read once: its content, and its tensors under the names of the file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.files.run_adapter import adapter_in
from orthotune.formats.adapter_file import AdapterFile, open_adapter
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.read_options import ReadOptions
from orthotune.formats.registry import read_file

#: The encoder of control images, beside the adapter of a control run.
HINT_ENCODER = "hint_encoder.safetensors"
BESIDE = (
    f"the encoder of control images beside it ({HINT_ENCODER}) is not a part of the adapter, and without it no control "
    "image has an effect: orthotune.image.control.pipeline.ControlPipeline loads both"
)


@dataclass(frozen=True)
class Adapter:
    """An adapter read from a file.

    Attributes:
        path: the file or folder, inside of a run directory where that was given.
        state: the content of the file, independent of its format.
        file: the opened file; a tensor that was read once stays in memory.
        options: facts that the file does not record.
    """

    path: Path
    state: AdapterState
    file: AdapterFile
    options: ReadOptions

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its name in the file."""
        return self.file.load(list(self.file.shapes))


def read_once(path: str | Path, **options: Any) -> Adapter:
    """Read the adapter at a path; each tensor is read from disk at most once.

    Args:
        path: a file, a folder with ``adapter_config.json``, or a run directory.
        options: fields of :class:`~orthotune.formats.read_options.ReadOptions`.

    Raises:
        AdapterFileError: the file has no known format, or is damaged.
        ConfigError: an option has an unknown value.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = f"{tempfile.mkdtemp()}/style.safetensors"
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.ones(2, 3)}, path)
        >>> adapter = read_once(path)
        >>> adapter.state.format, list(adapter.tensors())
        ('onetrainer', ['lora_unet_blk_lin.oft_R.weight'])
    """
    path = adapter_in(path)
    opened, answers = open_adapter(path), ReadOptions(**options)
    read: dict[str, Tensor] = {}

    def load(names: list[str]) -> dict[str, Tensor]:
        if missing := [name for name in names if name not in read]:
            read.update(opened.load(missing))
        return {name: read[name] for name in names}

    file = replace(opened, load=load)
    state = read_file(file, answers)
    if path.is_dir() and (path / HINT_ENCODER).is_file():
        state = replace(state, warnings=(*state.warnings, BESIDE))
    return Adapter(path, state, file, answers)
