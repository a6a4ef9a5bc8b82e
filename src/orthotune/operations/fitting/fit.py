"""Fit the content of an adapter file to the layers of a model, and make one config for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import AdapterFileError, UnsupportedLayerError
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.peft.fields import fields_of_spec
from orthotune.formats.peft.layer_settings import in_common
from orthotune.layers.base import OFTLayer
from orthotune.layers.conv import outputs_first
from orthotune.layers.registry import check_holds, kind_of
from orthotune.layers.settings import LayerSettings
from orthotune.rotation.blocks import nearest_divisor
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.spec import RotationSpec
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.places import meaning


@dataclass
class Fit:
    """An adapter fitted to one model, by the names of its modules.

    Attributes:
        rotations: module -> its rotations.
        features: module -> number of features that its rotation acts on.
        transforms: module -> a frozen map, for layers that no trainable rotation can represent.
        trained: module -> a trained transform other than blocks.
    """

    rotations: dict[str, LayerState] = field(default_factory=dict)
    features: dict[str, int] = field(default_factory=dict)
    transforms: dict[str, FrozenMap] = field(default_factory=dict)
    trained: dict[str, FamilyTransform] = field(default_factory=dict)


def fit(state: AdapterState, places: Mapping[str, str], modules: Mapping[str, nn.Module]) -> Fit:
    """Fit each layer of ``state`` to its module; nothing is changed.

    Args:
        state: the adapter.
        places: layer of the state -> name of a module.
        modules: base modules by name.

    Raises:
        AdapterFileError, BlockSizeError, UnsupportedLayerError: a layer does not fit its module; names the layer.
    """
    result = Fit()
    for layer, name in places.items():
        module = modules[name]
        held_map = state.transforms.get(layer)
        if isinstance(held_map, FamilyTransform):
            result.trained[name], result.features[name] = _trained(held_map, name, module)
            continue
        if layer in state.transforms:
            result.transforms[name] = _checked(state.transforms[layer], name, module)
            continue
        held = for_module(state.layers[layer], module)
        if held.truncated and not held.runs_on(outputs_of(module)):
            result.transforms[name] = _checked(held, name, module)
            continue
        with torch.device("meta"):
            own = LayerSettings(name, held.spec, fallback="error")
            tried = kind_of(module, name)(module, "check", own)
        empty = tried.rotations("check")
        _check_scale(held.magnitude, tried, name)
        expected = {part: tuple(rotation.weight.shape) for part, rotation in empty.items()}
        found = {part: tuple(vector.shape) for part, vector in held.rotations.items()}
        if expected != found:
            raise AdapterFileError(
                f"layer '{name}'", got=f"rotations of shape {_shapes(found)} in the file",
                needed=f"{_shapes(expected)} for this base",
                do="Load the adapter on the base model that it was trained on",
            )  # fmt: skip
        result.rotations[name] = held
        result.features[name] = next(iter(empty.values())).layout.features
    return result


def _trained(held: FamilyTransform, name: str, module: nn.Module) -> tuple[FamilyTransform, int]:
    if isinstance(module, nn.Embedding) != held.embedding:
        _refuse_kind(held.embedding, module)
    with torch.device("meta"):
        spec = replace(held.spec, magnitude=held.magnitude is not None)
        layer = kind_of(module, name)(module, "check", LayerSettings(name, spec, spec.rank, "error", False))
        empty = layer.rotations("check")
    refuse_bias(held, name, module)
    _check_scale(held.magnitude, layer, name)
    expected = {part: tuple(rotation.weight.shape) for part, rotation in empty.items()}
    if expected != {"": tuple(held.numbers.shape)}:
        raise AdapterFileError(
            f"layer '{name}'", got=f"{held.spec.transform} of shape {tuple(held.numbers.shape)} in the file",
            needed=f"{_shapes(expected)} for this base",
            do="Load the adapter on the base model that it was trained on",
        )  # fmt: skip
    return held, next(iter(empty.values())).layout.features


def refuse_bias(held: FamilyTransform, name: str, module: nn.Module) -> None:
    """Refuse a map of weight and bias for a layer with a bias, which no adapter changes here.

    Args:
        held: the transform of the file.
        name: of the layer.
        module: its base.

    Raises:
        UnsupportedLayerError: names the layer.
    """
    if held.with_bias and getattr(module, "bias", None) is not None:
        raise UnsupportedLayerError(
            f"layer '{name}'", got="a bias, which the tool that wrote the adapter maps together with the output",
            needed="a layer without a bias: here no adapter changes one", do="Merge the adapter with PEFT itself",
        )  # fmt: skip


def _check_scale(scale: Tensor | None, tried: OFTLayer, name: str) -> None:
    if scale is not None and scale.numel() != tried.oft_magnitude["check"].weight.numel():
        raise AdapterFileError(
            f"layer '{name}': the scale of the rows", got=f"{scale.numel()} values",
            needed=f"{tried.oft_magnitude['check'].weight.numel()}",
            do="Load the adapter on the base model that it was trained on",
        )  # fmt: skip


def _refuse_kind(embedding: bool, module: nn.Module) -> None:
    raise AdapterFileError(
        "an adapter for an embedding" if embedding else "an adapter for a layer that is not an embedding",
        got=f"a {type(module).__name__} of that name",
        do="Load the adapter on the base model that it was trained on",
    )


def for_module(layer: LayerState, module: nn.Module) -> LayerState:
    """The layer of a file for the weight of a module, whose number of dimensions decides directions in some formats.

    Args:
        layer: of the file.
        module: the base layer.

    Raises:
        AdapterFileError: one of the two is an embedding.

    Example:
        >>> for_module(LayerState({"": torch.ones(2, 1)}, conv_reversed=True), nn.Conv2d(2, 4, 1)).rotations[""][0]
        tensor([-1.])
    """
    if isinstance(module, nn.Embedding) != layer.embedding:
        _refuse_kind(layer.embedding, module)
    conv = isinstance(module, nn.modules.conv._ConvNd)
    return layer.for_weight(module.weight.shape if conv else (0, 0))  # type: ignore[arg-type]


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return " and ".join(f"{part}: {shape}" if part else str(shape) for part, shape in shapes.items())


def _natural(module: nn.Module) -> Tensor:
    """The weight as ``(out, in, ...)``."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return outputs_first(weight, module.groups)
    return weight.mT if isinstance(module, Conv1D) else weight


def outputs_of(module: nn.Module) -> int:
    """Output features of a layer; the shape of a quantized weight does not have them.

    Args:
        module: a layer that can carry an adapter.

    Example:
        >>> outputs_of(nn.Linear(4, 6)), outputs_of(nn.Embedding(5, 3))
        (6, 5)
    """
    if isinstance(module, nn.MultiheadAttention):  # three projections and one, of this size each
        return int(module.embed_dim)
    features = getattr(module, "out_features", None)
    return features if isinstance(features, int) else _natural(module).shape[0]


def _checked(transform: FrozenMap, name: str, module: nn.Module) -> FrozenMap:
    check_holds(kind_of(module, name), LayerSettings(name, RotationSpec(side=transform.side), frozen=transform))
    try:
        _try(transform, _natural(module).shape)
    except AdapterFileError as error:
        raise AdapterFileError(f"layer '{name}': {error.given}", got=error.got, needed=error.needed) from error
    return transform


def _try(transform: Any, shape: Sequence[int]) -> None:
    """Apply the transform to zeros, to find out whether it fits a weight of this shape.

    Raises:
        AdapterFileError: the transform does not fit.
    """
    out, *rest = shape
    sides = {part.side for part in getattr(transform, "parts", (transform,))}
    scale = getattr(transform, "magnitude", None)
    with torch.no_grad():
        if getattr(transform, "legacy_conv", False) or sides - {"in"} not in (set(), {"out"}) or len(sides) > 1:
            transform.apply(torch.zeros(*shape))
        elif sides == {"out"}:  # a column is enough
            transform.apply(torch.zeros(out, *(1 for _ in rest)))
        else:  # a row is enough; the scale has one value per row
            if scale is not None and scale.numel() != out:
                raise AdapterFileError("the scale of the rows", got=f"{scale.numel()} values", needed=f"{out}")
            (replace(transform, magnitude=None) if scale is not None else transform).apply(torch.zeros(1, *rest))


def config_for(fitted: Fit, names: Iterable[str], **fields: Any) -> OFTConfig:
    """A config with which the tuner creates exactly the layers of ``fitted``.

    Args:
        fitted: the adapter.
        names: names of all modules of the model; the target pattern must match none of the others.
        fields: further fields of the config.
    """
    targets = [*fitted.rotations, *fitted.transforms, *fitted.trained]
    if fitted.rotations or fitted.trained:
        # The exact map ignores the number of terms; the config then has PEFT's default.
        specs = {n: replace(h.spec, terms=5) if h.spec.exact else h.spec for n, h in fitted.rotations.items()}
        one_size = _one_size(fitted)
        if one_size is not None:
            specs = {name: replace(spec, block_size=one_size) for name, spec in specs.items()}
        for name, held in fitted.trained.items():
            specs[name] = replace(held.spec, magnitude=held.magnitude is not None)
        usual, own = in_common(specs)
        if fitted.trained and not usual.rank and usual.transform != "blocks":
            fields = {"r": 0} | fields
        if fitted.trained:
            fields = {"init_weights": False} | fields  # the file's numbers, which need not begin at the identity
        fields = fields_of_spec(usual) | {"layer_settings": own} | fields
    config = OFTConfig(target_modules=meaning(targets, names), block_size_fallback="nearest", **fields)
    config.load_context = replace(config.load_context, frozen_maps=dict(fitted.transforms))
    return config


def _one_size(fitted: Fit) -> int | None:
    """A block size from which PEFT's rule for non-dividing sizes gives the size of every layer, or None."""
    sizes = {name: held.spec.block_size for name, held in fitted.rotations.items()}
    for wanted in sorted(set(sizes.values()), reverse=True):
        if all(nearest_divisor(fitted.features[name], wanted) == size for name, size in sizes.items()):
            return wanted
    return None
