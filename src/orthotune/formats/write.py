"""The formats that can be written, each with what writes it; the other half of the roster."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

from orthotune.formats import single_file_write
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs import oft_blocks_write
from orthotune.formats.kinds import TARGETS
from orthotune.formats.peft import folder_write

_BLOCKS = ("lycoris", "kohya-oft", "comfyui")


def write_adapter(
    state: AdapterState, out: str | Path, target: str, modules: Mapping[str, list[str]] | None = None
) -> Path:
    """Write an adapter that :func:`~orthotune.formats.convert.convert` has made ready.

    Args:
        out: a file, or a folder for the formats of PEFT.
        target: id of the format.
        modules: component -> the base's modules, where names need them.

    Raises:
        UnsupportedLayerError: the tool has no place for a layer, a size or a name.
        OutputError: the place cannot be written to.

    Example:
        >>> write_adapter(converted, "oft.safetensors", "comfyui")  # doctest: +SKIP
        PosixPath('oft.safetensors')
    """
    out = Path(out)
    if target in _BLOCKS:
        return oft_blocks_write.write(state, out, cast(Literal["lycoris", "kohya-oft", "comfyui"], target))
    if TARGETS[target].folder:
        return folder_write.write(state, out, target, modules)
    return single_file_write.write(state, out, target)
