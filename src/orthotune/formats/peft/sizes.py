"""The config fields that describe the blocks of all layers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.adapter_state import LayerState
from orthotune.formats.peft.config_field import integer
from orthotune.formats.peft.fields import fields_of_spec
from orthotune.rotation.blocks import nearest_divisor


def common_size(layers: Mapping[str, LayerState], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One ``oft_block_size`` or ``r``, from which the nearest-divisor rule gives the block size of each layer.

    Args:
        layers: name -> layer.
        config: the config of the source, if there is one. Its ``r`` is used for shared blocks of several sizes, whose
            layer widths are unknown; the nearest-divisor rule is the same in all versions since 0.14.

    Raises:
        UnsupportedLayerError: there is no such value.

    Example:
        >>> import torch
        >>> common_size({"a": LayerState({"": torch.zeros(6, 6)}), "b": LayerState({"": torch.zeros(18, 6)})})
        {'r': 0, 'oft_block_size': 4}
    """
    sizes = sorted({layer.block_size() for layer in layers.values()})
    counts = sorted({count for layer in layers.values() if (count := layer.block_count()) is not None})
    for size in range(sizes[0], sizes[-1] + 1):
        if all(_gives(layer, size) == layer.block_size() for layer in layers.values()):
            return {"r": 0, "oft_block_size": size}
    for r in counts:
        if all(not layer.spec.shared and _gives(layer, r) == layer.block_count() for layer in layers.values()):
            return {"r": r, "oft_block_size": 0}
    given = integer(config or {}, "r", 0)
    if given and "oft_block_size" in (config or {}) and all(layer.spec.shared for layer in layers.values()):
        return {"r": given, "oft_block_size": 0}
    raise UnsupportedLayerError(
        "one PEFT config for all layers", got=f"blocks of {sizes}, {counts} of them",
        needed="one block size, or one number of blocks, that gives the sizes of all layers",
        do="Write it for orthotune, or a single file, which store the sizes per layer",
    )  # fmt: skip


def _gives(layer: LayerState, wanted: int) -> int:
    count = layer.block_count()
    if count is None:  # the width of a layer with a shared block is unknown
        return wanted
    features = count * layer.block_size()
    return nearest_divisor(features, min(wanted, features))


def size_key_means(key: str, layer: str) -> bool:
    """Whether a key of ``rank_pattern`` or ``block_size_pattern`` matches a layer: the end of its name, or a regex.

    Example:
        >>> size_key_means("q_proj", "layers.0.q_proj"), size_key_means("q.*", "layers.0.my_q_proj")
        (True, False)
    """
    return re.match(rf"(.*\.)?({key})$", layer) is not None


def counts_of(layers: Mapping[str, LayerState]) -> dict[str, Any]:
    """``r`` and ``rank_pattern`` for the number of blocks of each layer.

    Example:
        >>> import torch
        >>> counts_of({"a": LayerState({"": torch.zeros(6, 6)}), "b": LayerState({"": torch.zeros(2, 6)})})
        {'r': 6, 'rank_pattern': {'b': 2}}
    """
    counts = {name: layer.rotations[""].shape[0] for name, layer in layers.items()}
    usual = Counter(counts.values()).most_common(1)[0][0]
    return {"r": usual, "rank_pattern": {name: count for name, count in counts.items() if count != usual}}


def for_all(layers: Mapping[str, LayerState], *names: str) -> dict[str, Any]:
    """Fields of PEFT that must be the same in all layers.

    Args:
        layers: at least one.
        names: of the fields.

    Raises:
        UnsupportedLayerError: two layers differ in a field.
    """
    fields = [fields_of_spec(layer.spec) for layer in layers.values()]
    for name in names:
        if len(found := {own[name] for own in fields}) > 1:
            raise UnsupportedLayerError(
                "one config for all layers", got=f"layers with {name} {' and '.join(sorted(map(str, found)))}",
                do="Write a single file instead, for a tool that stores them per layer",
            )  # fmt: skip
    return {name: fields[0][name] for name in names}
