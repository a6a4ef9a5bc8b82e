"""PEFT's configs of other orthogonal methods, accepted where ours is: HRA, BOFT, RoAd and PSOFT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import peft
from peft import BOFTConfig, HRAConfig, PeftConfig, PeftModel, PsoftConfig, RoadConfig
from torch import nn

from orthotune.errors import ConfigError

#: fields with one name and meaning in all of PEFT's configs
SHARED = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "task_type",
    "inference_mode", "base_model_name_or_path", "revision", "fan_in_fan_out", "init_weights",
)  # fmt: skip


def _hra(config: Any) -> dict[str, Any]:
    return {"transform": "reflections", "r": config.r, "variant": "gram_schmidt" if config.apply_GS else ""}


def _boft(config: Any) -> dict[str, Any]:
    size, count = config.boft_block_size, config.boft_block_num
    named = {"r": count, "oft_block_size": 0} if count else {"oft_block_size": size}
    factors = config.boft_n_butterfly_factor
    _refuse(config, boft_dropout=0.0)
    return {"transform": "butterfly", "magnitude": True, "factors": factors, **named}


def _road(config: Any) -> dict[str, Any]:
    return {"transform": "planes", "side": "out", "variant": config.variant, "oft_block_size": config.group_size}


def _psoft(config: Any) -> dict[str, Any]:
    _refuse(config, psoft_dropout=0.0, ab_svd_init="psoft_init", psoft_orth=True, use_cayley_neumann=False)
    scaled = config.psoft_mag_a or config.psoft_mag_b
    if config.psoft_mag_a != config.psoft_mag_b:
        raise ConfigError(
            "psoft_mag_a and psoft_mag_b", got=f"{config.psoft_mag_a} and {config.psoft_mag_b}",
            needed="both scales, or neither",
        )  # fmt: skip
    variant = ("psoft" if scaled else "rotation") + ("_lowrank" if config.psoft_svd == "lowrank" else "")
    return {"transform": "subspace", "r": config.r, "variant": variant}


#: config of PEFT -> the fields of ours that mean the same
PUBLISHED_CONFIGS: Mapping[type[PeftConfig], Callable[[Any], dict[str, Any]]] = {
    HRAConfig: _hra, BOFTConfig: _boft, RoadConfig: _road, PsoftConfig: _psoft,
}  # fmt: skip


def fields_of_published(config: PeftConfig) -> dict[str, Any] | None:
    """The fields of an ``OFTConfig`` that mean what a config of another orthogonal method does; None for other configs.

    Args:
        config: a config object of PEFT.

    Raises:
        ConfigError: the config asks for something that is not trained here, such as dropout.

    Example:
        >>> fields_of_published(HRAConfig(r=4))["transform"]
        'reflections'
    """
    translate = PUBLISHED_CONFIGS.get(type(config))
    if translate is None:
        return None
    shared = {name: getattr(config, name) for name in SHARED if hasattr(config, name)}
    bias = str(getattr(config, "bias", "none"))
    return shared | translate(config) | {"bias": "oft_only" if bias.endswith("_only") else bias}


def _refuse(config: PeftConfig, **needed: Any) -> None:
    for field, value in needed.items():
        if getattr(config, field) != value:
            raise ConfigError(
                f"{field}={getattr(config, field)!r} of {type(config).__name__}", needed=f"{value!r}",
                do="Train it with PEFT itself: peft.get_peft_model",
            )  # fmt: skip


def get_peft_model(model: nn.Module, peft_config: PeftConfig, *args: Any, **kwargs: Any) -> Any:
    """PEFT's ``get_peft_model``; configs of HRA, BOFT, RoAd and PSOFT get orthotune's layers, too.

    PEFT's own function, imported from ``peft``, gives those configs PEFT's layers.

    Args:
        model: any module.
        peft_config: an ``OFTConfig``, or any config of PEFT.
        args: as in PEFT.
        kwargs: as in PEFT.

    Returns:
        A ``PeftModel``, or what PEFT makes of the kind of task.

    Raises:
        ConfigError: the config asks for something that is not trained here.

    Example:
        >>> from peft import HRAConfig
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), HRAConfig(r=2, target_modules=["0"]))
        >>> model.base_model.model[0].oft_R["default"].spec.transform
        'reflections'
    """
    if type(peft_config) in PUBLISHED_CONFIGS:
        from orthotune.tuner.config import OFTConfig

        peft_config = OFTConfig.from_peft(peft_config)
    made: PeftModel | Any = peft.get_peft_model(model, peft_config, *args, **kwargs)
    return made
