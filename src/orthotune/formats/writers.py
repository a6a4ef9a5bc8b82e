"""Write an adapter in any format that can be written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.fused import Rows, join_parts
from orthotune.formats.names.spelling import dotted, spelled
from orthotune.formats.registry import targets


def write_adapter(
    state: AdapterState,
    out: str | Path,
    target: str,
    modules: Mapping[str, list[str]] | None = None,
    rows: Rows | None = None,
) -> Path:
    """Write an adapter that :func:`~orthotune.formats.convert.convert` returned.

    Args:
        state: the adapter.
        out: a file, or a folder for the formats of PEFT.
        target: id of the format.
        modules: component -> modules of the base, needed for names with underscores, and for transformers whose names
            in the tool depend on the family.
        rows: component -> module -> rows of its weight, needed where the tool has one layer for several of these.

    Raises:
        UnsupportedLayerError: the format cannot hold a layer, a size or a name.
        OutputError: the output cannot be written.

    Example:
        >>> write_adapter(converted, "oft.safetensors", "comfyui")  # doctest: +SKIP
        PosixPath('oft.safetensors')
    """
    format, stems = targets()[target], [*state.layers, *state.transforms]
    if format.folder:
        return format.write(state, Path(out), dotted(stems, modules))
    ready, names = join_parts(state, spelled(stems, target, modules), rows)
    return format.write(ready, Path(out), names)
