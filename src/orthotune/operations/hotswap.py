"""``hotswap_adapter``: replace the parameters of a loaded adapter in place, so that a compiled model stays compiled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError, ConfigError
from orthotune.files.names import escaped
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.fused import split_fused
from orthotune.formats.names.modules import match_names
from orthotune.formats.peft.layer_settings import series_of
from orthotune.formats.read_options import ReadOptions
from orthotune.formats.registry import read_adapter
from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.parametrization.rotation import Rotation
from orthotune.operations.fitting.components import adaptable, bare
from orthotune.operations.fitting.fit import for_module, outputs_of, refuse_bias
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.packing import block_size_of, pack, unpack
from orthotune.rotation.spec import RotationSpec


def hotswap_adapter(model: Any, path: str | Path, adapter_name: str = "default", **options: Any) -> None:
    """Overwrite the parameters of an adapter in a model with those of an adapter file.

    For serving: modules and shapes stay the same, so ``torch.compile`` does not recompile. Smaller blocks whose size
    divides that of the model are padded, which is exact: the skew matrix of the large block has the small ones on its
    diagonal. Any other difference is an error, and the model is unchanged.

    Args:
        model: a model with the adapter.
        path: a file, or a folder with ``adapter_config.json``.
        adapter_name: the adapter whose parameters are replaced.
        options: facts that the file does not record, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Raises:
        ConfigError: the model has no such adapter, or the adapter is merged.
        AdapterFileError: the file has other layers, sides, maps or sizes, or values that are not finite; names the
            layer.
        UnsupportedLayerError: the tool that wrote the file maps the bias of a layer, too, and the layer has one.

    Example:
        >>> hotswap_adapter(model, "runs/other/adapter")  # doctest: +SKIP
    """
    state = read_adapter(path, ReadOptions(**options))
    modules = bare(model).named_modules()
    layers = {n: m for n, m in modules if isinstance(m, OFTLayer) and m.rotations(adapter_name)}
    if not layers:
        raise ConfigError(f"adapter_name='{adapter_name}'", got="no rotations of that adapter in the model")
    if merged := [name for name, layer in layers.items() if adapter_name in layer.merged_adapters]:
        raise ConfigError(
            f"adapter '{adapter_name}'", got=f"merged into {escaped(merged)}", do="Call unmerge_adapter first"
        )
    new: list[tuple[Tensor, Tensor]] = []
    for name, held in _placed(state, model, layers).items():
        new += _values(name, held, layers[name], adapter_name)
    with torch.no_grad():
        for parameter, values in new:
            parameter.copy_(values)
        for layer in layers.values():
            for rotation in layer.rotations(adapter_name).values():
                # The memo looks at the parameters alone, and a basis may have changed.
                if isinstance(rotation, FamilyRotation) and rotation.basis is not None:
                    rotation.memo.drop("miss: another basis")


def _placed(state: AdapterState, model: Any, layers: dict[str, OFTLayer]) -> dict[str, LayerState | FamilyTransform]:
    """The content of the file for each layer, under the names of the model."""
    modules = adaptable(model)
    state = split_fused(state, {"": {name: outputs_of(module) for name, module in modules.items()}})
    raw = {layer: state.prefixes.get(layer, layer) for layer in [*state.layers, *state.transforms]}
    match = match_names(raw.values(), {"": modules})
    places = {layer: match.matched[name][1] for layer, name in raw.items() if name in match.matched}
    held: dict[str, Any] = {**state.layers, **state.transforms}
    frozen = [name for name, layer in state.transforms.items() if not isinstance(layer, FamilyTransform)]
    strange = [*match.unmatched, *frozen, *state.other]
    strange += [name for layer, name in places.items() if name not in layers]
    missing = sorted(set(layers) - set(places.values()))
    if strange or missing:
        raise AdapterFileError(
            f"replacing an adapter by {state.source}",
            got="; ".join(
                f"{what}: {escaped(found)}"
                for what, found in (("only in the file", strange), ("only in the model", missing))
                if found
            ),
            needed="rotations of the same layers",
            do="Load the file as another adapter with load_adapter",
        )
    return {name: held[layer] for layer, name in places.items()}


def _values(
    name: str, held: LayerState | FamilyTransform, layer: OFTLayer, adapter: str
) -> list[tuple[Tensor, Tensor]]:
    rotations = layer.rotations(adapter)
    new: list[tuple[Tensor, Tensor]]
    if isinstance(held, LayerState):
        held = for_module(held, layer.get_base_layer())
    has = layer.fitting(replace(held.spec, magnitude=held.magnitude is not None))
    wanted, found = _meaning(layer.oft_settings[adapter].spec), _meaning(has)
    if differ := [key for key in wanted if wanted[key] != found[key]]:
        raise _misfit(name, found, wanted, differ)
    if isinstance(held, FamilyTransform):
        rotation = next(iter(rotations.values()))
        if (held.numbers.shape, len(rotations)) != (rotation.weight.shape, 1):
            sizes, size = {"numbers": list(held.numbers.shape)}, {"numbers": list(rotation.weight.shape)}
            raise _misfit(name, sizes, size, ["numbers"])
        refuse_bias(held, name, layer.get_base_layer())
        new = [(rotation.weight, held.numbers)]
        if held.needs_basis:
            if held.basis is None:
                raise AdapterFileError(
                    f"replacing the parameters of layer '{name}'", got=f"a {held.spec.transform} without its basis",
                    needed="a file with the basis", do="Load the file as another adapter with load_adapter",
                )  # fmt: skip
            basis = rotation.get_buffer("basis")
            if basis.shape != held.basis.shape:
                sizes, size = {"basis": list(held.basis.shape)}, {"basis": list(basis.shape)}
                raise _misfit(name, sizes, size, ["basis"])
            new.append((basis, held.basis))
        return _finite(
            name, new + ([] if held.magnitude is None else [(layer.oft_magnitude[adapter].weight, held.magnitude)])
        )
    if held.rotations.keys() != rotations.keys():
        raise _misfit(name, {"parts": sorted(held.rotations)}, {"parts": sorted(rotations)}, ["parts"])
    new = [(rotation.weight, _fitted(name, held, part, rotation)) for part, rotation in rotations.items()]
    if held.magnitude is not None:
        new.append((layer.oft_magnitude[adapter].weight, held.magnitude))
    return _finite(name, new)


def _finite(name: str, new: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    for _, values in new:
        if not torch.isfinite(values).all():
            raise AdapterFileError(f"layer '{name}'", got="NaN or infinite values", needed="finite values")
    return new


def _meaning(spec: RotationSpec) -> dict[str, Any]:
    map = "exact" if spec.exact else f"{series_of(spec)} series with {spec.terms} terms"
    others: dict[str, Any] = {"transform": spec.transform, "variant": spec.variant, "factors": spec.factors}
    if spec.transform != "blocks":  # smaller blocks are padded, other transforms have no such form
        others["block_size"] = spec.block_size
    others["conv"] = spec.conv
    return {"side": spec.side, "map": map, "COFT eps": spec.eps, "magnitude": spec.magnitude} | others


def _misfit(name: str, found: dict[str, Any], wanted: dict[str, Any], keys: list[str]) -> AdapterFileError:
    return AdapterFileError(
        f"replacing the parameters of layer '{name}'",
        got=", ".join(f"{key} {found[key]}" for key in keys),
        needed=", ".join(f"{key} {wanted[key]}" for key in keys),
        do="Load the file as another adapter with load_adapter",
    )


def _fitted(name: str, held: LayerState, part: str, rotation: Rotation) -> Tensor:
    """The packed parameters of one matrix in the shape and the scale of the model's parameter."""
    stored, (rows, elements) = held.rotations[part], rotation.weight.shape
    alike = held.spec.scaled == rotation.spec.scaled or stored.shape[-1] == 0
    if stored.shape == rotation.weight.shape and alike and held.spec.shared == rotation.layout.shared:
        return stored
    small, large = block_size_of(stored.shape[-1]), block_size_of(elements)
    features = rotation.layout.block_count * large
    many = stored.shape[0] if not held.spec.shared else features // small
    # Not with COFT, whose radius depends on the number of blocks, and not for a shared block, which stays one.
    alone = held.spec.eps is None and rotation.copies == 1 and not rotation.layout.shared
    if alone and large % small == 0 and many * small == features:
        Q = unpack(held.vector(part), small).expand(many, small, small).reshape(rows, -1, small, small)
        full = Q.new_zeros(rows, large // small, small, large // small, small)
        diagonal = torch.arange(large // small)
        full[:, diagonal, :, diagonal, :] = Q.transpose(0, 1)
        return pack(full.view(rows, large, large)) / rotation.spec.scale
    sizes = {"blocks": f"{'shared' if held.spec.shared else stored.shape[0]} x {small}"}
    wanted = {"blocks": f"{'shared' if rotation.layout.shared else rows} x {large}"}
    raise _misfit(name, sizes, wanted, ["blocks"])
