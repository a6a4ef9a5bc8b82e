"""Write an adapter in any format that can be written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.convert import convert, plan
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


def of_stock(states: Iterable[AdapterState]) -> bool:
    """Whether the configs of all adapters say that stock PEFT loads them.

    Args:
        states: the adapters that a new one is computed from.

    Example:
        >>> of_stock([AdapterState({}, {"peft_type": "OFT"}), AdapterState({}, {"peft_type": "ORTHOTUNE"})])
        False
    """
    return all(state.config.get("peft_type") == "OFT" for state in states)


def write_folder(state: AdapterState, folder: Path, *, stock: bool) -> Path:
    """Write a folder with an adapter that was computed: PEFT's where stock PEFT reads it exactly, else orthotune's.

    The tensors do not show the kind of a layer, and stock PEFT computes another map for some kinds, such as
    convolutions. Only the adapters that a new one was computed from can say that stock PEFT agrees.

    Args:
        state: the adapter, of layers that orthotune's own format can hold.
        folder: an existing folder.
        stock: stock PEFT computes what orthotune computes for these layers, see :func:`of_stock`.

    Raises:
        OutputError: the output cannot be written.

    Example:
        >>> import json, tempfile, torch
        >>> from orthotune.formats.adapter_state import LayerState
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = write_folder(AdapterState({"blk.lin": LayerState({"": torch.zeros(2, 1)})}), folder, stock=True)
        >>> json.loads((folder / "adapter_config.json").read_text())["peft_type"]
        'OFT'
    """
    planned = plan(state, "peft")
    if stock and planned.verdict == "lossless" and not planned.needs_base and not planned.notes:
        try:
            return write_adapter(convert(state, "peft")[0], folder, "peft")
        except UnsupportedLayerError:
            pass  # sizes of blocks that one config of PEFT cannot give
    return write_adapter(convert(state, "orthotune")[0], folder, "orthotune")
