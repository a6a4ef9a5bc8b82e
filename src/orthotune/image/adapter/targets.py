"""Find the modules of an image model that are adapted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from orthotune.errors import TargetError, nearest
from orthotune.image.adapter.settings import ATTENTION, WITH_CONVOLUTIONS, AdapterSettings
from orthotune.image.families.pipeline_family import PipelineFamily

#: the attention of CLIP's text encoders
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")


def targets(family: PipelineFamily, wanted: str | Sequence[str] = ATTENTION) -> list[str]:
    """The ends of the module names in the denoiser that ``wanted`` stands for.

    Args:
        family: the pipeline.
        wanted: ``"attention"``, ``"attention+convolutions"`` or names as in ``target_modules`` of PEFT.

    Raises:
        TargetError: the family has no convolutions, or a name matches no module of the denoiser.
    """
    if wanted == ATTENTION:
        return list(family.attention)
    if wanted == WITH_CONVOLUTIONS:
        if not family.convolutions:
            raise TargetError(
                f"target_modules={wanted}", got=f"no convolutions in {family.name}", do=f"Use {ATTENTION}"
            )
        return [*family.attention, *family.convolutions]
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    known = [name for name, _ in family.denoiser.named_modules()]
    for name in names:
        if not any(ends_with(key, name) for key in known):
            near = nearest(name, {key.rpartition(".")[2] for key in known} | {ATTENTION, WITH_CONVOLUTIONS})
            raise TargetError(
                f"target_modules: {name!r}", got=f"no such module in the {family.denoiser_name} of {family.name}",
                needed=f"names such as {', '.join(near or family.attention)}",
            )  # fmt: skip
    return names


def adapted_modules(family: PipelineFamily, settings: AdapterSettings) -> dict[str, list[str]]:
    """Component -> full names of the modules to adapt, without modules on which no image depends.

    Args:
        family: the pipeline.
        settings: of the adapter.

    Raises:
        TargetError: as :func:`targets`, or no matching module of a component has a weight.
    """
    found = {}
    for name, ends in target_names(family, settings).items():
        idle = family.idle_modules(name)
        found[name] = [key for key in with_weight(component(family, name), ends) if not key.startswith(idle or ("\0",))]
        if not found[name]:
            raise TargetError(f"target_modules={ends}", got=f"no module with a weight in {name}")
    return found


def target_names(family: PipelineFamily, settings: AdapterSettings) -> dict[str, list[str]]:
    """Component -> ends of the names of the modules to adapt.

    Args:
        family: the pipeline.
        settings: of the adapter.
    """
    ends = {family.denoiser_name: targets(family, settings.targets)}
    if settings.text_encoders:
        ends |= {name: list(TEXT_ATTENTION) for name, part in family.text_encoders.items() if _is_clip(part)}
    return ends


def with_weight(module: nn.Module, ends: Sequence[str]) -> list[str]:
    """Full names of the modules inside ``module`` that match and have a weight of two or more dimensions.

    Args:
        module: searched with all its submodules.
        ends: ends of names.
    """
    return [key for key, part in module.named_modules() if _has_weight(part) and any(ends_with(key, e) for e in ends)]


def component(family: PipelineFamily, name: str) -> nn.Module:
    """A network of the pipeline.

    Args:
        family: the pipeline.
        name: attribute of the pipeline, such as ``unet``.
    """
    part: nn.Module = getattr(family.pipeline, name)
    return part


def ends_with(key: str, name: str) -> bool:
    """Whether ``name`` matches a module, by the rule of PEFT.

    Args:
        key: full name of the module.
        name: entry of ``target_modules``.

    Example:
        >>> ends_with("blocks.0.to_out.0", "to_out.0"), ends_with("blocks.0.add_q", "q")
        (True, False)
    """
    return key == name or key.endswith(f".{name}")


def _is_clip(part: Any) -> bool:
    return str(getattr(part.config, "model_type", "")).startswith("clip")


def _has_weight(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= 2
