"""The exact change of every weight as dense tensors, ``<layer>.diff``, for adapters that fit no adapter format.

ComfyUI and LyCORIS add these tensors to the weights. They are exact for this base only, as large as the changed
weights, and not an orthogonal adapter any more.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

from torch import Tensor

from orthotune.files.tensor_entries import Entry, write_file
from orthotune.formats.names.modules import name_in_tools
from orthotune.formats.names.spelling import spelled
from orthotune.operations.checkpoint.changes import Change, changes
from orthotune.operations.checkpoint.stream import DenseMerge


def write_changes(merge: DenseMerge, out: Path, on_tensor: Callable[[int], None] | None = None) -> int:
    """Write ``<layer>.diff`` in float32 for every weight that changes, one in memory at a time.

    The tensors of an image model have ComfyUI's names, those of a transformers model the names of the modules.

    Args:
        merge: the adapter on its base.
        out: the new file.
        on_tensor: called after each tensor with its number of bytes.

    Returns:
        The number of tensors.

    Raises:
        MergeError, OutputError: as for a merge.
    """
    wanted = list(changes(merge))
    names = _names(wanted, merge)
    entries, by_name, position = [], {}, 0
    for change in wanted:
        name, size = f"{names[change.name]}.diff", 4 * prod(change.shape)
        shape = change.shape[::-1] if change.stored_transposed else change.shape
        entries.append(Entry(name, "F32", tuple(shape), out, position, size))
        by_name[name], position = change, position + size

    def compute(entry: Entry) -> Tensor:
        change = by_name[entry.name]
        tensor = change.compute().float()
        tensor = (tensor.mT if change.stored_transposed else tensor).contiguous()
        if on_tensor is not None:
            on_tensor(entry.size)
        return tensor

    write_file(out, entries, {"format": "pt"}, compute)
    return len(entries)


def _names(wanted: list[Change], merge: DenseMerge) -> dict[str, str]:
    if any(part.transformers for part in merge.base.parts):
        return {change.name: change.module for change in wanted}
    stems = {c.name: name_in_tools(c.component, c.module) for c in wanted}
    spelling = spelled(stems.values(), "comfyui")
    return {name: spelling[stem] for name, stem in stems.items()}
