"""Which fields of a config give every layer the blocks that it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.adapter_state import LayerState
from orthotune.formats.peft.config_field import whole
from orthotune.formats.peft.fields import fields_of_spec
from orthotune.rotation.blocks import nearest_divisor


def common_size(layers: Mapping[str, LayerState], config: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One ``oft_block_size``, or one ``r``, from which the nearest-divisor rule finds each layer's own.

    ``config`` is the one that the layers came with: shared blocks of several sizes do not say how wide their layers
    are, but the rule that made them is the same in every version since 0.14.

    Raises:
        UnsupportedLayerError: there is none.

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
    given = whole(config or {}, "r", 0)
    if given and "oft_block_size" in (config or {}) and all(layer.spec.shared for layer in layers.values()):
        return {"r": given, "oft_block_size": 0}
    raise UnsupportedLayerError(
        "one config of PEFT's for all layers", got=f"blocks of {sizes}, {counts} of them",
        needed="one block size, or one number of blocks, that is nearest to every layer's own",
        do="Write it for orthotune, or a single file, which takes each layer's own",
    )  # fmt: skip


def _gives(layer: LayerState, wanted: int) -> int:
    count = layer.block_count()
    if count is None:  # a shared block does not say how wide the layer is; what divides it is taken as it is
        return wanted
    features = count * layer.block_size()
    return nearest_divisor(features, min(wanted, features))


def counts_of(layers: Mapping[str, LayerState]) -> dict[str, Any]:
    """``r`` and ``rank_pattern``, the number of blocks of each layer.

    Example:
        >>> import torch
        >>> counts_of({"a": LayerState({"": torch.zeros(6, 6)}), "b": LayerState({"": torch.zeros(2, 6)})})
        {'r': 6, 'rank_pattern': {'b': 2}}
    """
    counts = {name: layer.rotations[""].shape[0] for name, layer in layers.items()}
    usual = Counter(counts.values()).most_common(1)[0][0]
    return {"r": usual, "rank_pattern": {name: count for name, count in counts.items() if count != usual}}


def for_all(layers: Mapping[str, LayerState], *names: str) -> dict[str, Any]:
    """Fields of PEFT's that no layer can have for itself.

    Args:
        layers: at least one.
        names: of the fields.

    Raises:
        UnsupportedLayerError: two layers differ in one.
    """
    fields = [fields_of_spec(layer.spec) for layer in layers.values()]
    for name in names:
        if len(found := {own[name] for own in fields}) > 1:
            raise UnsupportedLayerError(
                "one config for all layers", got=f"layers with {name} {' and '.join(sorted(map(str, found)))}",
                do="Write a single file instead, for a tool that takes each layer's own",
            )  # fmt: skip
    return {name: fields[0][name] for name in names}
