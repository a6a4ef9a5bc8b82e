"""The built-in image model with the result of a finished run, at a strength."""

from __future__ import annotations

from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer

from orthotune.errors import RecipeError
from orthotune.image.adapter.adapters import NAME
from orthotune.image.adapter.saved_adapter import load_adapter
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.registry import open_family
from orthotune.layers.base import OFTLayer
from orthotune.recipes.image_run import ADAPTER, MODEL
from orthotune.tuner.strength import set_scale
from orthotune.worlds import image


def finished(run: Path, strength: float = 1.0) -> PipelineFamily:
    """The built-in model with the trained parameters of a finished run.

    Args:
        run: the output of ``orthotune train subject``, ``control`` or ``t2i`` on the image world.
        strength: 1 as trained, 0 the base. Angles of rotations and the change by LoRA are multiplied by the strength;
            weights that were trained in full lie on the straight line from those of the base.
    """
    if (run / MODEL).is_dir():
        family = open_family(run / MODEL)
        if strength != 1:
            _towards_base(family, strength)
        return family
    family = open_family(image.PIPELINE)
    load_adapter(family, run / ADAPTER)
    for part in family.modules().values() if strength != 1 else ():
        layers = list(part.modules())
        if any(isinstance(layer, OFTLayer) for layer in layers):
            set_scale(part, NAME, strength)
        for layer in layers:
            if isinstance(layer, LoraLayer):
                if any(layer.use_dora.values()):
                    raise RecipeError(f"{run} at strength {strength:g}", got="DoRA, whose magnitudes have no strength")
                layer.set_scale(NAME, strength)
    return family


@torch.no_grad()
def _towards_base(family: PipelineFamily, strength: float) -> None:
    base = open_family(image.PIPELINE).modules()
    for name, part in family.modules().items():
        before = dict(base[name].named_parameters())
        for key, parameter in part.named_parameters():
            parameter.lerp_(before[key].to(parameter), 1 - strength)
