"""Other numbers in the place of an adapter's: nothing is added or removed, so a compiled model stays compiled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError, ConfigError
from orthotune.files.names import escaped
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.names.modules import match_names
from orthotune.formats.peft.layer_settings import series_of
from orthotune.formats.read_options import ReadOptions
from orthotune.formats.registry import read_adapter
from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.rotation import Rotation
from orthotune.operations.fitting.components import adaptable, bare
from orthotune.rotation.packing import block_size_of, pack, unpack
from orthotune.rotation.spec import RotationSpec


def hotswap_adapter(model: Any, path: str | Path, adapter_name: str = "default", **options: Any) -> None:
    """Write the numbers of an adapter's file into an adapter that a model already has, in place.

    Made for serving: the modules, their shapes and the order of layers stay, so ``torch.compile`` compiles nothing
    again. Smaller blocks whose size divides the model's are padded, which is exact: the skew matrix of the large block
    has the small ones on its diagonal. Everything else that differs is refused, and then nothing was changed.

    Args:
        model: a model with the adapter.
        path: a file, or a folder with ``adapter_config.json``.
        adapter_name: the adapter whose numbers are replaced.
        options: what the file does not say about itself, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Raises:
        ConfigError: the model has no such adapter, or it is merged.
        AdapterFileError: other layers, sides, maps or sizes, or numbers that are not finite; names the layer.

    Example:
        >>> hotswap_adapter(model, "runs/other/adapter")  # doctest: +SKIP
    """
    state = read_adapter(path, ReadOptions(**options))
    modules = bare(model).named_modules()
    layers = {n: m for n, m in modules if isinstance(m, OFTLayer) and m.rotations(adapter_name)}
    if not layers:
        raise ConfigError(f"adapter_name='{adapter_name}'", got="no rotation of that name in the model")
    if merged := [name for name, layer in layers.items() if adapter_name in layer.merged_adapters]:
        raise ConfigError(
            f"adapter '{adapter_name}'", got=f"merged into {escaped(merged)}", do="Call unmerge_adapter first"
        )
    new: list[tuple[Tensor, Tensor]] = []
    for name, held in _placed(state, model, layers).items():
        new += _numbers(name, held, layers[name], adapter_name)
    with torch.no_grad():
        for parameter, numbers in new:
            parameter.copy_(numbers)


def _placed(state: AdapterState, model: Any, layers: dict[str, OFTLayer]) -> dict[str, LayerState]:
    """What the file holds for each layer, by the model's names."""
    raw = {layer: state.prefixes.get(layer, layer) for layer in [*state.layers, *state.transforms]}
    match = match_names(raw.values(), {"": adaptable(model)})
    places = {layer: match.matched[name][1] for layer, name in raw.items() if name in match.matched}
    strange = [*match.unmatched, *state.transforms, *state.other]
    strange += [name for layer, name in places.items() if name not in layers]
    missing = sorted(set(layers) - set(places.values()))
    if strange or missing:
        raise AdapterFileError(
            f"{state.source} in the place of another adapter",
            got="; ".join(
                f"{what}: {escaped(found)}"
                for what, found in (("only in the file", strange), ("only in the model", missing))
                if found
            ),
            needed="rotations of the same layers",
            do="Load it under a name of its own with load_adapter",
        )
    return {name: state.layers[layer] for layer, name in places.items()}


def _numbers(name: str, held: LayerState, layer: OFTLayer, adapter: str) -> list[tuple[Tensor, Tensor]]:
    rotations = layer.rotations(adapter)
    wanted, found = _meaning(layer.oft_settings[adapter].spec), _meaning(held.spec)
    if differ := [key for key in wanted if wanted[key] != found[key]]:
        raise _misfit(name, found, wanted, differ)
    if held.rotations.keys() != rotations.keys():
        raise _misfit(name, {"parts": sorted(held.rotations)}, {"parts": sorted(rotations)}, ["parts"])
    new: list[tuple[Tensor, Tensor]] = [
        (rotation.weight, _fitted(name, held, part, rotation)) for part, rotation in rotations.items()
    ]
    if held.magnitude is not None:
        new.append((layer.oft_magnitude[adapter], held.magnitude))
    for _, numbers in new:
        if not torch.isfinite(numbers).all():
            raise AdapterFileError(f"layer '{name}'", got="NaN or infinite values", needed="finite numbers")
    return new


def _meaning(spec: RotationSpec) -> dict[str, Any]:
    map = "exact" if spec.exact else f"{series_of(spec)} series with {spec.terms} terms"
    return {"side": spec.side, "map": map, "COFT eps": spec.eps, "magnitude": spec.magnitude}


def _misfit(name: str, found: dict[str, Any], wanted: dict[str, Any], keys: list[str]) -> AdapterFileError:
    return AdapterFileError(
        f"layer '{name}' in the place of another adapter's",
        got=", ".join(f"{key} {found[key]}" for key in keys),
        needed=", ".join(f"{key} {wanted[key]}" for key in keys),
        do="Load it under a name of its own with load_adapter",
    )


def _fitted(name: str, held: LayerState, part: str, rotation: Rotation) -> Tensor:
    """The packed numbers of one matrix in the shape and the scale of the model's parameter."""
    stored, (rows, elements) = held.rotations[part], rotation.weight.shape
    alike = held.spec.scaled == rotation.spec.scaled or stored.shape[-1] == 0
    if stored.shape == rotation.weight.shape and alike and held.spec.shared == rotation.layout.shared:
        return stored
    small, large = block_size_of(stored.shape[-1]), block_size_of(elements)
    features = rotation.layout.block_count * large
    many = stored.shape[0] if not held.spec.shared else features // small
    # COFT's radius goes by the number of blocks, and a shared block cannot become several.
    alone = held.spec.eps is None and rotation.copies == 1 and not rotation.layout.shared
    if alone and large % small == 0 and many * small == features:
        Q = unpack(held.vector(part), small).expand(many, small, small).reshape(rows, -1, small, small)
        whole = Q.new_zeros(rows, large // small, small, large // small, small)
        place = torch.arange(large // small)
        whole[:, place, :, place, :] = Q.transpose(0, 1)
        return pack(whole.view(rows, large, large)) / rotation.spec.scale
    sizes = {"blocks": f"{'shared' if held.spec.shared else stored.shape[0]} x {small}"}
    wanted = {"blocks": f"{'shared' if rotation.layout.shared else rows} x {large}"}
    raise _misfit(name, sizes, wanted, ["blocks"])
