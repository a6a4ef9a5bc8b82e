"""The exact change of every weight as dense tensors, ``<layer>.diff``, for adapters that fit no adapter format.

ComfyUI and LyCORIS add these tensors to the weights. They are exact for this base only, as large as the changed
weights, and not an orthogonal adapter any more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.files.tensor_entries import Entry, write_file
from orthotune.formats.names.spelling import Spelling, spelled_places
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
    entries, groups, position = [], dict[str, tuple[_Rows, ...]](), 0
    for name, rows in _names(list(changes(merge)), merge).items():
        shape = _shape(rows)
        groups[f"{name}.diff"] = rows
        entries.append(Entry(f"{name}.diff", "F32", shape, out, position, 4 * prod(shape)))
        position += 4 * prod(shape)

    def compute(entry: Entry) -> Tensor:
        found = [_computed(change, shape) for change, shape in groups[entry.name]]
        if on_tensor is not None:
            on_tensor(entry.size)
        return found[0] if len(found) == 1 else torch.cat(found)

    write_file(out, entries, {"format": "pt"}, compute)
    return len(entries)


#: a change and the shape of its weight as stored; without a change, rows that stay as they are
_Rows = tuple[Change | None, tuple[int, ...]]


def _shape(rows: tuple[_Rows, ...]) -> tuple[int, ...]:
    return (sum(shape[0] for _, shape in rows), *rows[0][1][1:])


def _stored(change: Change) -> tuple[int, ...]:
    return tuple(change.shape[::-1] if change.stored_transposed else change.shape)


def _computed(change: Change | None, shape: tuple[int, ...]) -> Tensor:
    if change is None:
        return torch.zeros(shape)
    tensor = change.compute().float()
    return (tensor.mT if change.stored_transposed else tensor).contiguous()


def _names(wanted: list[Change], merge: DenseMerge) -> dict[str, tuple[_Rows, ...]]:
    if any(part.transformers for part in merge.base.parts):
        return {change.module: ((change, _stored(change)),) for change in wanted}
    modules = merge.base.rows()
    of_place = {(change.component, change.module): change for change in wanted}
    spelling = spelled_changes(wanted, modules)
    found: dict[str, tuple[_Rows, ...]] = {}
    for change in wanted:
        name = spelling.names[change.name]
        places = spelling.parts.get(name, ((change.component, change.module),))
        rest = _stored(change)[1:]
        found[name] = tuple(
            (own, _stored(own)) if (own := of_place.get(place)) else (None, (modules[place[0]][place[1]], *rest))
            for place in places
        )
    return found


def spelled_changes(wanted: Sequence[Change], modules: Mapping[str, Mapping[str, int]]) -> Spelling:
    """The names of changed modules for ComfyUI.

    Args:
        wanted: the changes.
        modules: component -> module of the base -> rows of its weight.

    Raises:
        UnsupportedLayerError: ComfyUI knows none of the names.
    """
    spelling = spelled_places({c.name: (c.component, c.module) for c in wanted}, "comfyui", modules)
    if spelling.known == 0:
        raise UnsupportedLayerError(
            f"the names of {len(wanted)} layers for ComfyUI", got="a model none of whose layers its loader knows",
            needed="a model that it loads", do="Export with --to dense",
        )  # fmt: skip
    return spelling
