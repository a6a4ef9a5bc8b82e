"""Read packed upper triangles with the config of PEFT since 0.16 or of orthotune."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.files.names import shortened
from orthotune.formats.adapter_file import CONFIG_NAME, AdapterFile
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import refuse_foreign
from orthotune.formats.codecs.family_tensors import checked_basis, family_layer, refuse_parts
from orthotune.formats.codecs.oft_r import check_packed
from orthotune.formats.peft.beyond_stock import FORMAT_VERSION, ORTHOTUNE_TYPE
from orthotune.formats.peft.config_field import integer
from orthotune.formats.peft.fields import spec_of_fields
from orthotune.formats.peft.layer_settings import fault
from orthotune.formats.peft.names import bare
from orthotune.formats.peft.sizes import size_key_means
from orthotune.formats.read_options import ReadOptions
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.pairs import PairedPlanes
from orthotune.rotation.spec import RotationSpec

_ROTATION = re.compile(r"^(?P<layer>.*)\.oft_(?P<embedding>embedding_)?R\.(?:(?P<part>.+)\.)?weight$")
_BASIS = re.compile(r"^(?P<layer>.*)\.oft_(?:embedding_)?R\.(?:(?P<part>.+)\.)?basis$")
_MAGNITUDE = re.compile(r"^(?P<layer>.*)\.oft_magnitude(?:\.weight)?$")
_OLDER = {"oft_r": "PEFT 0.8 to 0.15", "oft_s": "PEFT 0.14 or 0.15", "boft_R": "BOFT", "lora_A": "LoRA"}


def read_folder(file: AdapterFile, format: str, options: ReadOptions) -> AdapterState:
    """Read the adapter in a folder of PEFT or orthotune.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.
        options: facts that the file does not record.

    Raises:
        AdapterFileError: a tensor has a wrong shape or belongs to another method, or the config is for another kind of
            adapter.
    """
    config = dict(file.config or {})
    _check_config(file, config)
    if options.series is not None:
        config["neumann_series"] = options.series
    tensors = file.read(file.shapes)
    layers, transforms = _layers(tensors, config, file)
    prefixes = {bare(found["layer"]): found["layer"] for key in tensors if (found := _ROTATION.match(key))}
    return AdapterState(
        layers, config, _other(file, tensors), file.path.parent, format, transforms, prefixes, file.metadata,
    )  # fmt: skip


def _check_config(file: AdapterFile, config: Mapping[str, Any]) -> None:
    path, kind = file.path.parent / CONFIG_NAME, config.get("peft_type")
    if kind not in ("OFT", ORTHOTUNE_TYPE):
        raise AdapterFileError(
            f"{path} configures another kind of adapter",
            got=f"peft_type {kind!r}",
            needed=f"'OFT' or '{ORTHOTUNE_TYPE}': angles, formats and combinations are those of rotations",
            do="merge, inspect, evaluate drift and rewind take a LoRA of PEFT, too; use PEFT itself for anything else",
        )
    version = config.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise AdapterFileError(
            f"{path} was written by a newer orthotune",
            got=f"format_version {version!r}",
            needed=f"{FORMAT_VERSION} or less",
            do="Upgrade with: pip install -U orthotune",
        )


def _layers(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], file: AdapterFile
) -> tuple[dict[str, LayerState], dict[str, FrozenMap]]:
    rotations: dict[str, dict[str, Tensor]] = {}
    embeddings: set[str] = set()
    keys: dict[str, str] = {}
    for key, tensor in tensors.items():
        if found := _ROTATION.match(key):
            layer = bare(found["layer"])
            rotations.setdefault(layer, {})[found["part"] or ""] = tensor
            keys[layer] = key
            if found["embedding"]:
                embeddings.add(layer)
    if not rotations:
        kinds = sorted({kind for key in tensors for mark, kind in _OLDER.items() if f".{mark}" in key})
        raise AdapterFileError(
            f"{file.path} has no rotation",
            got=f"tensors of {' and '.join(kinds)}" if kinds else f"{shortened(tensors) or 'no tensor at all'}",
            needed="names that end in oft_R.weight",
        )
    magnitudes = {bare(found["layer"]): t for key, t in tensors.items() if (found := _MAGNITUDE.match(key))}
    bases = {bare(found["layer"]): t for key, t in tensors.items() if (found := _BASIS.match(key))}
    if spec_of_fields(config).terms == 0:
        raise AdapterFileError(f"num_cayley_neumann_terms=0 in {file.path.parent / CONFIG_NAME}", needed="1 or more")
    own = config.get("layer_settings") or {}
    if (wrong := fault(own)) is not None:
        raise AdapterFileError(f"layer_settings of {file.path.parent / CONFIG_NAME}", got=wrong)
    specs = {name: spec_of_fields(config, name) for name in rotations}
    # Experts share a tensor, and the COFT radius of each depends on their number, which only the base model has.
    if config.get("target_parameters"):
        specs = {name: spec if "eps" in own.get(name, {}) else replace(spec, eps=None) for name, spec in specs.items()}
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    for name, parts in rotations.items():
        # Dropout is a setting of the training run, not part of the adapter.
        spec = replace(specs[name], dropout=0.0)
        if spec.transform != "blocks":
            vectors = refuse_parts(file, name, parts)
            if spec.transform == PairedPlanes.name and vectors.dim() == 2:
                spec = _with_groups(spec, config, name, vectors.shape)
            made = family_layer(file, keys[name], vectors, spec, experts=bool(config.get("target_parameters")))
            transforms[name] = replace(
                made, magnitude=magnitudes.get(name), embedding=name in embeddings,
                basis=checked_basis(file, made, bases.get(name)),
            )  # fmt: skip
            continue
        for tensor in parts.values():
            check_packed(file, keys[name], tensor)
        layers[name] = LayerState(parts, spec, magnitudes.get(name), name in embeddings)
    return layers, transforms


def _with_groups(spec: RotationSpec, config: Mapping[str, Any], layer: str, shape: Sequence[int]) -> RotationSpec:
    """The spec of planes with the size of a layer's groups, which the shape of its numbers does not show."""
    r, size = integer(config, "r", 0), integer(config, "oft_block_size", 0)
    for field in ("rank_pattern", "block_size_pattern"):
        pattern = config.get(field) or {}
        if not isinstance(pattern, Mapping) or not all(isinstance(value, int) for value in pattern.values()):
            raise AdapterFileError(f"{field} in the adapter's config", needed="whole numbers by name")
        try:
            own = [value for key, value in pattern.items() if size_key_means(key, layer)]
        except re.error as fault:
            raise AdapterFileError(f"a key of {field}", got=str(fault), needed="a regular expression") from fault
        if own:
            r, size = (own[0], 0) if field == "rank_pattern" else (0, own[0])
    settings = (config.get("layer_settings") or {}).get(layer, {})
    if "r" in settings or "block_size" in settings:
        r, size = settings.get("r", 0), settings.get("block_size", 0)
    try:
        return PairedPlanes.choose(
            replace(spec, block_size=size), PairedPlanes.features_of(spec, shape), r, "nearest", layer
        )[0]
    except OrthotuneError:
        return spec  # refused where the shape is checked


def _other(file: AdapterFile, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {key: key for key in tensors if any(known.match(key) for known in (_ROTATION, _BASIS, _MAGNITUDE))}
    return {bare(key): tensors[key] for key in refuse_foreign(file, {"": own})}
