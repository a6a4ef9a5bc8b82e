"""Adapters of a model combined into another one: ``add_weighted_adapter``."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from orthotune.errors import ConfigError, UnsupportedLayerError, nearest
from orthotune.formats.adapter_state import LayerState
from orthotune.formats.layer_settings import in_common
from orthotune.formats.peft_fields import fields_of_spec
from orthotune.layers.base import OFTLayer
from orthotune.layers.embedding import Embedding
from orthotune.layers.experts import ParamWrapper
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.joint_layer import TYPES, Combination, CombinationType


def add_weighted_adapter(
    tuner: BaseTuner,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str | None = None,
    combination_type: CombinationType = "geodesic",
    density: float | None = None,
    majority_sign_method: Literal["total", "frequency"] = "total",
) -> str:
    """Add an adapter that is made of others, and return its name; it is not active yet.

    Args:
        tuner: the model of adapters.
        adapters: whole, whatever strength is set for them.
        weights: as strengths are: 1 is the whole adapter. Those of ``geodesic`` need not sum to 1.
        adapter_name: the new one; ``A_then_B_product`` or ``A_and_B_geodesic`` without a name.
        combination_type: ``geodesic``: the weighted mean on the geodesics (Karcher), turned on by the sum of the
            weights. ``product``: the first turns first, ``R_1^w1 R_2^w2 ...``, what activating them in this order at
            these strengths does. ``tangent``: ``exp(w_1 log R_1 + ...)``. ``ties``: the same, with PEFT's TIES of the
            logarithms. Only the product depends on the order.
        density: share of the numbers that ``ties`` keeps.
        majority_sign_method: of ``ties``.

    Raises:
        ConfigError: an adapter is not there, the new name is taken, or an option has no meaning.
        UnsupportedLayerError: the adapters have no common form at a layer. Nothing was changed.

    Example:
        >>> model.add_weighted_adapter(["style", "subject"], [0.7, 0.3], "both")  # doctest: +SKIP
        'both'
    """
    if combination_type not in TYPES:
        raise ConfigError(
            f"combination_type='{combination_type}'", needed=" or ".join(TYPES),
            do="A LoRA is no adapter of this model: orthotune combine A:0.7 B:0.3 --type svd_lora --base BASE --out C"
            if combination_type == "svd_lora" else None,
        )  # fmt: skip
    if len(adapters) != len(weights):
        raise ConfigError(f"{len(weights)} weights", needed=f"one for each of the {len(adapters)} adapters")
    how = Combination(tuple(weights), combination_type, density, majority_sign_method)
    _check_names(tuner, adapters)
    name = adapter_name or name_of(adapters, combination_type)
    if name in tuner.peft_config or not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"adapter name '{name}'", needed="a name that is free, no word of torch's, without a dot")
    joint = _joint_layers(tuner.model, adapters, how)
    tuner.peft_config[name] = _config(joint, tuner.peft_config[adapters[0]])
    active = list(tuner.active_adapters)
    try:
        tuner.inject_adapter(tuner.model, name)
        _fill(joint, name)
    except BaseException:
        tuner.delete_adapter(name)
        raise
    tuner.set_adapter(active, inference_mode=_frozen(tuner, active))
    return name


def name_of(adapters: Sequence[str], combination_type: str) -> str:
    """A name that tells the order where it matters.

    Example:
        >>> name_of(["A", "B"], "product"), name_of(["A", "B"], "geodesic")
        ('A_then_B_product', 'A_and_B_geodesic')
    """
    between = "_then_" if combination_type == "product" else "_and_"
    return f"{between.join(adapters)}_{combination_type}".replace(".", "_")


class Joint:
    """A layer of the model and what its adapters become there."""

    def __init__(self, layer: OFTLayer, key: str, state: LayerState) -> None:
        self.layer, self.key, self.state = layer, key, state

    @property
    def target(self) -> str:
        """What a config calls it."""
        return f"{self.key}.{self.layer.parameter_name}" if isinstance(self.layer, ParamWrapper) else self.key


def _check_names(tuner: BaseTuner, adapters: Sequence[str]) -> None:
    for adapter in adapters:
        if adapter not in tuner.peft_config:
            near = nearest(adapter, tuner.peft_config)
            raise ConfigError(
                f"adapter '{adapter}'", got=f"adapters {sorted(tuner.peft_config)}",
                do=f"Did you mean {near[0]}?" if near else None,
            )  # fmt: skip
        config = tuner.peft_config[adapter]
        if config.modules_to_save or config.bias != "none":
            raise ConfigError(
                f"combining adapter '{adapter}'", got="parameters that it holds whole (modules_to_save, bias)",
                needed="adapters of rotations alone",
            )  # fmt: skip


def _joint_layers(model: nn.Module, adapters: Sequence[str], how: Combination) -> list[Joint]:
    found, off = [], {}
    for key, layer in model.named_modules():
        if not isinstance(layer, OFTLayer) or not any(name in layer.oft_settings for name in adapters):
            continue
        key = key.replace(".base_layer", "")
        for name in adapters:
            if layer.frozen_map(name) is not None:
                raise UnsupportedLayerError(
                    f"layer '{key}'", got=f"adapter '{name}', a frozen map of the weight", needed="rotations"
                )
        states = [_state(layer, name) if name in layer.oft_settings else None for name in adapters]
        state, far = how.joint(key, states)
        off[key] = far
        found.append(Joint(layer, key, state))
    warn_series(off)
    return found


def warn_series(off: dict[str, float]) -> None:
    """Say how far Neumann series were from the rotations that took their place; layer -> spectral norm."""
    worst = max(off, key=lambda key: off[key], default=None)
    if worst is not None and off[worst] > 0:
        warnings.warn(
            "Adapters that are Neumann series were combined by the rotations nearest to them: a weight changes by "
            f"{off[worst]:.2g} of itself at most, in layer '{worst}'.",
            stacklevel=4,
        )


@torch.no_grad()
def _state(layer: OFTLayer, name: str) -> LayerState:
    vectors = {}
    for part, rotation in layer.rotations(name).items():
        v = rotation.weight.detach()
        # COFT's ball goes by the blocks of one expert.
        vectors[part] = rotation.spec.within_ball(v.view(rotation.copies, -1, v.shape[-1])).reshape(v.shape)
    magnitude = layer.oft_magnitude[name].detach() if name in layer.oft_magnitude else None
    spec = replace(layer.oft_settings[name].spec, eps=None)
    return LayerState(vectors, spec, magnitude, isinstance(layer, Embedding))


def _config(joint: Sequence[Joint], like: Any) -> OFTConfig:
    usual, own = in_common({one.target: one.state.spec for one in joint})
    modules = [one.target for one in joint if not isinstance(one.layer, ParamWrapper)]
    config = OFTConfig(
        **fields_of_spec(usual), layer_settings={one.key: own[one.target] for one in joint if one.target in own},
        block_size_fallback="nearest", task_type=like.task_type, inference_mode=True,
        target_modules="|".join(map(re.escape, sorted(modules))) if modules else [],
        target_parameters=[one.target for one in joint if isinstance(one.layer, ParamWrapper)] or None,
    )  # fmt: skip
    config.base_model_name_or_path = like.base_model_name_or_path
    return config


@torch.no_grad()
def _fill(joint: Sequence[Joint], name: str) -> None:
    for one in joint:
        for part, rotation in one.layer.rotations(name).items():
            rotation.weight.copy_(one.state.rotations[part])
        if one.state.magnitude is not None:
            one.layer.oft_magnitude[name].copy_(one.state.magnitude)


def _frozen(tuner: BaseTuner, active: Sequence[str]) -> bool:
    """Whether the active adapters were not being trained."""
    layers = [module for module in tuner.model.modules() if isinstance(module, OFTLayer)]
    held = [p for layer in layers for name in active for p in layer.stored(name)]
    return not any(p.requires_grad for p in held)
