"""An adapter on both sides of every weight: two adapters, one of the inputs and one of the outputs, used together."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.published_configs import get_peft_model

#: Names of the two adapters.
INPUTS, OUTPUTS = "inputs", "outputs"


def two_sided(model: nn.Module, *, scaled: bool = False, transform: str = "reflections", **fields: Any) -> PeftModel:
    """Adapt both sides of the weights of a model: ``W' = Q_U W Q_V``, or ``W' = Q_U diag(s) W Q_V``.

    HOFT, and SHOFT with ``scaled=True``, for reflections; the published ``ether+`` for hyperplanes. The model has two
    active adapters, ``inputs`` and ``outputs``, which are saved, loaded, merged and switched like any two: after
    ``load_adapter`` both have to be made active with ``model.base_model.set_adapter(["inputs", "outputs"])``.

    Args:
        model: without an adapter.
        scaled: a trained scale ``s`` of the outputs of ``W Q_V``, before they are mapped.
        transform: of both sides, by its name or that of its publication.
        **fields: of :class:`~orthotune.OFTConfig`, for both sides alike.

    Returns:
        The model with both adapters.

    Raises:
        ConfigError: a side is given, a field contradicts the transform, or a target has one side alone: an embedding,
            a stack of experts. The model is as it was.

    Source: HOFT, arXiv 2505.16531, section 4: ``Q_U`` and ``Q_V`` are products of ``r`` Householder reflections, SHOFT
    has a scale between them. There the compact form is inverted by a Neumann series; here exactly.

    Example:
        >>> model = two_sided(nn.Sequential(nn.Linear(8, 4)), r=2, target_modules=["0"])
        >>> model.base_model.active_adapters, sum(p.numel() for p in model.parameters() if p.requires_grad)
        (['inputs', 'outputs'], 24)
    """
    given = [name for name in ("side", "magnitude") if name in fields]
    if given or transform == "road":
        got = f"{given[0]}={fields[given[0]]!r}" if given else "transform='road', which maps outputs"
        raise ConfigError(
            "an adapter of both sides", got=got, needed="fields that both sides have",
            do="Pass scaled=True for a scale, and transform='planes' for planes",
        )  # fmt: skip
    first = OFTConfig(transform=transform, side="in", magnitude=scaled, **fields)
    second = OFTConfig(transform=transform, side="out", **fields)
    if second.target_parameters:
        raise ConfigError(
            "an adapter of both sides", got=f"target_parameters={second.target_parameters!r}, stacks of experts",
            needed="modules with a weight of their own", do="Omit target_parameters, or adapt one side with OFTConfig",
        )  # fmt: skip
    adapted = get_peft_model(model, first, adapter_name=INPUTS)
    try:
        adapted.add_adapter(OUTPUTS, second)
    except UnsupportedLayerError as error:
        adapted.unload()
        raise ConfigError(
            "an adapter of both sides", got=error.given, needed="layers whose inputs and outputs can be mapped",
            do="Name it in exclude_modules, or adapt one side with OFTConfig",
        ) from error  # fmt: skip
    adapted.base_model.set_adapter([INPUTS, OUTPUTS])
    return adapted
