"""The base model without its weights, with an adapter: which parameters are rotated, and how."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError, OrthotuneError
from orthotune.layers.base import OFTLayer
from orthotune.operations.adapter import Adapter
from orthotune.operations.checkpoint.base_files import Base, Part
from orthotune.operations.checkpoint.origin import Origin, origins
from orthotune.operations.checkpoint.tensor_tree import module_tree
from orthotune.operations.fitting.components import bare
from orthotune.operations.fitting.report import LoadReport
from orthotune.operations.load import apply_adapter
from orthotune.rotation.strength import Kind

ADAPTER = "default"


@dataclass
class Skeleton:
    """A checkpoint's model on the meta device with one adapter in memory.

    Args:
        layers: parameter name -> the layer that rotates it and the parameter's name below that layer's base.
        replaced: parameter name -> its replacement in the adapter (``modules_to_save``, biases).
        shapes: shape of every parameter.
        origins: parameter name -> tensors of the checkpoint.
        tied: parameter -> the parameter whose values it shares.
        models: component -> its model and the prefix of its parameters' names.
    """

    shapes: dict[str, tuple[int, ...]]
    origins: dict[str, Origin]
    tied: dict[str, str] = field(default_factory=dict)
    models: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    layers: dict[str, tuple[OFTLayer, str]] = field(default_factory=dict)
    replaced: dict[str, Tensor] = field(default_factory=dict)

    @property
    def changed(self) -> set[str]:
        """Names of the parameters that a merge changes."""
        return {*self.layers, *self.replaced}

    def take(self, root: nn.Module, prefix: str) -> None:
        """Record the rotated and the replaced parameters of an adapted model, whose names start with ``prefix``."""
        for key, module in root.named_modules():
            if isinstance(module, OFTLayer) and ADAPTER in module.oft_settings:
                module.check_mergeable([ADAPTER])
                for leaf in module.base_parameters():
                    self.layers[f"{prefix}{_bare(key)}.{leaf}"] = (module, leaf)
        for name, parameter in root.named_parameters():
            if parameter.device.type != "meta" and ".oft_" not in name:
                self.replaced[prefix + _bare(name)] = parameter.detach()

    def set_scale(self, strength: float, kind: Kind | None) -> None:
        """Set the strength of the adapter.

        Raises:
            ConfigError: the adapter replaces parameters, or as for :func:`~orthotune.tuner.strength.set_scale`.
        """
        if self.replaced:
            raise ConfigError(
                f"strength {strength:g}", got=f"{len(self.replaced)} parameters that the adapter replaces",
                needed="an adapter of rotations only",
            )  # fmt: skip
        for layer in {id(layer): layer for layer, _ in self.layers.values()}.values():
            layer.set_scale(ADAPTER, strength, kind)


def build_skeletons(base: Base, adapter: Adapter, *, strict: bool = True) -> tuple[list[Skeleton], LoadReport]:
    """One skeleton for each part of ``base`` with the adapter applied, and a report of the matched layers.

    Raises:
        OrthotuneError: the installed transformers does not know the model of the config.
        AdapterFileError, UnsupportedLayerError: the adapter does not fit this model.
    """
    skeletons = [_from_transformers(part) if part.transformers else _from_tensors(part) for part in base.parts]
    models = {name: model for skeleton in skeletons for name, (model, _) in skeleton.models.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*tie_word_embeddings=True.*"
        )  # the plan unties where a merge needs it
        tuned, report = apply_adapter(models[""] if list(models) == [""] else models, adapter, ADAPTER, strict=strict)
    for skeleton in skeletons:
        for component, (_, prefix) in skeleton.models.items():
            skeleton.take(bare(tuned if not component else tuned[component]).eval(), prefix)
    return skeletons, report


def _from_tensors(part: Part) -> Skeleton:
    shapes = {name: entry.shape for name, entry in part.checkpoint.entries().items()}
    skeleton = Skeleton(shapes, {name: Origin([[name]]) for name in shapes})
    for component, prefix in part.prefixes().items():
        own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        skeleton.models[component] = (module_tree(own), prefix)
    return skeleton


def _from_transformers(part: Part) -> Skeleton:
    from orthotune.tuner.register import register

    register()
    model = _empty_model(part.checkpoint.folder)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = list(part.checkpoint.entries())
    found = {name: origin for name, origin in origins(model, names).items() if name in shapes}
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return Skeleton(shapes, found, tied, {part.component: (model, "")})


def _empty_model(base: Path) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(base, trust_remote_code=False)
        named = (config.architectures or [None])[0]
        kind: Any = getattr(transformers, str(named), None)
        own = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        with torch.device("meta"):
            return kind(config) if own else transformers.AutoModelForCausalLM.from_config(config)
    except (ValueError, OSError) as error:
        raise OrthotuneError(
            f"the base model {base}", got=str(error).split("\n")[0], needed="a model that transformers knows",
            do="Merge without --stream",
        ) from error  # fmt: skip


def _bare(name: str) -> str:
    for inside in (".base_layer", f".modules_to_save.{ADAPTER}"):
        name = name.replace(inside, "")
    return name
