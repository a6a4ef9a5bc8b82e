"""Original layers that diffusers has split in parts, as ``qkv``: one adapter for all rows, and one for each part.

A rotation of the inputs is the same one for all parts. A rotation of the outputs belongs to rows; it can be split
between two blocks, and the rotations of parts with equal block sizes can be joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.names.modules import ModuleNames, Place
from orthotune.formats.names.original import original_of
from orthotune.formats.names.spelling import Spelling
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.frozen import Blocks, FrozenMap, SplitRows
from orthotune.rotation.packing import block_size_of
from orthotune.rotation.transform import BlockTransform

#: component -> module -> rows of its weight
Rows = Mapping[str, Mapping[str, int]]


def split_fused(state: AdapterState, rows: Rows) -> AdapterState:
    """The adapter with a layer for each part of the original layers that the model has in parts.

    Args:
        state: with the names of the file.
        rows: component -> module -> rows of its weight.

    Raises:
        UnsupportedLayerError: a rotation of the outputs mixes the rows of two parts.

    Example:
        >>> modules = {"text_fusion.projector": 4, "a": 4}
        >>> split_fused(AdapterState({"a": LayerState({"": torch.zeros(2, 3)})}), {"": modules}).layers.keys()
        dict_keys(['a'])
    """
    if not any(original_of(modules) for modules in rows.values()):
        return state
    known = ModuleNames(rows)
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    prefixes = dict(state.prefixes)
    for name in (*state.layers, *state.transforms):
        parts = known.parts(state.prefixes.get(name, name).removeprefix("base_model.model."))
        held = state.transform(name)
        swapped = _swapped(known, state.prefixes.get(name, name), rows)
        if swapped and held.side == "out":
            raise UnsupportedLayerError(
                f"layer '{name}'", got="a rotation of outputs whose two halves have changed places in the model",
                needed="a rotation of inputs, or the model in its original layout",
            )  # fmt: skip
        if swapped and getattr(held, "magnitude", None) is not None:
            # under the name in the model, so that the halves are not exchanged once more
            new = ".".join(filter(None, swapped))
            (layers if name in state.layers else transforms)[new] = _halves_exchanged(name, held)  # type: ignore[assignment]
            prefixes.pop(name, None)
            prefixes[new] = new
            continue
        pieces = zip(parts, _pieces(name, held, [rows[c][m] for c, m in parts]), strict=True) if parts else ()
        if not parts:
            (layers if name in state.layers else transforms)[name] = held  # type: ignore[assignment]
            continue
        prefixes.pop(name, None)
        for (component, module), piece in pieces:
            new = f"{component}.{module}" if component else module
            prefixes[new] = new
            if isinstance(piece, LayerState):
                layers[new] = piece
            else:
                transforms[new] = piece
    return replace(state, layers=layers, transforms=transforms, prefixes=prefixes)


def _swapped(known: ModuleNames, name: str, rows: Rows) -> Place | None:
    """The module whose two halves of rows stand in the other order under this name."""
    for component, module in known.find(name) if len(known.find(name)) == 1 else ():
        family = original_of(rows[component])
        own = name.endswith((module, module.replace(".", "_")))  # the name in the model, not the original one
        if family is not None and family.swaps(module, rows[component]) and not own:
            return component, module
    return None


def _halves_exchanged(name: str, held: FrozenMap) -> FrozenMap:
    """The map of inputs for a weight whose two halves of rows have changed places: its scale has one value per row."""
    scale = getattr(held, "magnitude", None)
    if scale is None and held.side == "in":
        return held
    rows = 0 if scale is None else scale.numel()
    if (
        scale is None
        or held.side != "in"
        or rows % 2
        or not isinstance(held, (LayerState, Blocks, Butterfly, FamilyTransform))
    ):
        raise UnsupportedLayerError(
            f"layer '{name}'", got=f"a {type(held).__name__} for a layer whose two halves have changed places",
            needed="a map of the inputs, with one scale for each row",
        )  # fmt: skip
    return replace(held, magnitude=scale.roll(rows // 2))


def _pieces(name: str, held: FrozenMap, sizes: list[int]) -> list[FrozenMap]:
    """The map of each run of rows."""
    if isinstance(held, SplitRows) and list(held.sizes) == sizes:
        return [_as_layer(part) for part in held.parts]
    magnitude = getattr(held, "magnitude", None)
    if magnitude is not None and magnitude.numel() != sum(sizes):
        raise UnsupportedLayerError(
            f"layer '{name}'", got=f"a scale of {magnitude.numel()} rows", needed=f"{sum(sizes)} rows, as in the model"
        )
    scales: Sequence[Any] = [None] * len(sizes) if magnitude is None else magnitude.split(sizes)
    if isinstance(held, LayerState) and held.side == "out":
        held = held.plain()
        return [replace(held, rotations={"": vector}, magnitude=scale)
                for vector, scale in zip(_runs(name, held, sizes), scales, strict=True)]  # fmt: skip
    if isinstance(held, Blocks) and held.side == "out" and not held.shared:
        counts = _counts(name, held.matrices.shape[-1], held.matrices.shape[0], sizes)
        return [replace(held, matrices=piece, magnitude=scale)
                for piece, scale in zip(held.matrices.split(counts), scales, strict=True)]  # fmt: skip
    if held.side == "in" and isinstance(held, (LayerState, Blocks, Butterfly)):
        return [replace(held, magnitude=scale) for scale in scales]
    raise UnsupportedLayerError(
        f"layer '{name}'", got=f"a {type(held).__name__} that mixes the outputs of {len(sizes)} layers of the model",
        needed="blocks that each lie in one of them",
    )  # fmt: skip


def _runs(name: str, held: LayerState, sizes: list[int]) -> list[Tensor]:
    vector, size = held.rotations[""], held.block_size()
    if held.spec.shared:
        _counts(name, size, sum(sizes) // size, sizes)
        return [vector] * len(sizes)
    return list(vector.split(_counts(name, size, vector.shape[0], sizes)))


def _counts(name: str, size: int, count: int, sizes: list[int]) -> list[int]:
    if any(rows % size for rows in sizes) or sum(sizes) != size * count:
        raise UnsupportedLayerError(
            f"layer '{name}'", got=f"{count} blocks of {size} outputs",
            needed=f"blocks that each lie in one of the layers of {', '.join(map(str, sizes))} outputs "
            "that the model has instead",
        )  # fmt: skip
    return [rows // size for rows in sizes]


def _as_layer(part: FrozenMap) -> FrozenMap:
    if not isinstance(part, BlockTransform) or part.truncated:
        return part
    return LayerState({"": part.numbers}, part.spec, part.magnitude, blend=part.blend)


def join_parts(state: AdapterState, spelling: Spelling, rows: Rows | None) -> tuple[AdapterState, dict[str, str]]:
    """The adapter with one layer for each original layer of several parts, and the names in the file.

    Args:
        state: the layers to write.
        spelling: of these layers, for the target.
        rows: component -> module -> rows of its weight; None if the base is unknown.

    Raises:
        UnsupportedLayerError: the parts cannot be one rotation, or the halves of a layer have changed places.
    """
    wrong = [name for name in spelling.swapped if state.transform(name).side == "out"]
    if wrong:
        raise UnsupportedLayerError(
            f"layer '{wrong[0]}'", got="a rotation of outputs whose two halves have changed places in the tool's model",
            needed="a rotation of inputs", do="Leave this layer out of target_modules, or write --to diff",
        )  # fmt: skip
    layers, transforms, names = dict(state.layers), dict(state.transforms), dict(spelling.names)
    for name in spelling.swapped:
        mapping: dict[str, Any] = layers if name in layers else transforms
        mapping[name] = _halves_exchanged(name, mapping[name])
    for name, parts in spelling.parts.items():
        own = {spelling.places[stem]: stem for stem, written in spelling.names.items() if written == name}
        found = {stem: layers.get(stem, transforms.get(stem)) for stem in own.values()}
        held = [found[own[part]] if part in own else None for part in parts]
        joined = _joined(name, parts, held, rows)
        for stem in own.values():
            layers.pop(stem, None)
            transforms.pop(stem, None)
            del names[stem]
        layers[name], names[name] = joined, name
    return replace(state, layers=layers, transforms=transforms), names


def _joined(name: str, parts: Sequence[Place], held: Sequence[FrozenMap | None], rows: Rows | None) -> LayerState:
    def refuse(got: str, needed: str, do: str | None = None) -> UnsupportedLayerError:
        shown = ", ".join(module for _, module in parts)
        return UnsupportedLayerError(f"one layer '{name}' for {shown}", got=got, needed=needed, do=do)

    found = [one for one in held if one is not None]
    if not all(isinstance(one, LayerState) for one in found):
        raise refuse("a butterfly or another map", "rotations in blocks", "Write --to diff, exact for one base")
    layers = [one for one in held if isinstance(one, LayerState)]
    first = layers[0]
    if first.side == "in":
        same = all(
            torch.equal(one.rotations[""], first.rotations[""]) and one.spec.map == first.spec.map for one in layers
        )
        if len(layers) < len(parts) or not same:
            got = "another rotation of the inputs for each" if len(layers) == len(parts) else "an adapter for some"
            needed = "the same one for all, as the tool has one layer for them"
            raise refuse(got, needed, "Write --to diff, exact for one base")
    sizes = {one.block_size() for one in layers}
    if len(sizes) > 1 or (any(one.spec.shared for one in layers) and first.side == "out"):
        raise refuse(f"blocks of {' and '.join(map(str, sorted(sizes)))}, or shared ones", "equal blocks for all")
    counts = [None if rows is None else rows[component][module] for component, module in parts]
    if None in counts and (len(layers) < len(parts)):
        raise refuse("an adapter for some of them", "the number of rows of the others", "Name the base with --base")
    scaled = any(one.magnitude is not None for one in layers)
    magnitudes, vectors = [], []
    for one, count in zip(held, counts, strict=True):
        features = count if count is not None else 0
        if isinstance(one, LayerState):
            vectors.append(one.rotations[""])
            size = one.rotations[""].shape[0] * block_size_of(one.rotations[""].shape[1])
            features = count if count is not None else size if first.side == "out" else 0
            magnitudes.append(torch.ones(features) if one.magnitude is None else one.magnitude)
        else:
            size = first.block_size()
            if features % size:
                raise refuse(f"{features} rows without an adapter", f"a multiple of the block size {size}")
            vectors.append(first.rotations[""].new_zeros(features // size, first.rotations[""].shape[1]))
            magnitudes.append(torch.ones(features))
    if scaled and first.side == "in" and None in counts:
        raise refuse("scales of rows", "the number of rows of each", "Name the base with --base")
    rotations = first.rotations if first.side == "in" else {"": torch.cat(vectors)}
    return replace(first, rotations=rotations, magnitude=torch.cat(magnitudes) if scaled else None)
