"""An adapter in a model as a LoRA, behind PEFT's own verbs: ``convert_to_lora`` and ``save_as_lora``.

PEFT's conversion knows linear layers. Here every kind of layer for which a LoRA can stand is converted, a layer that
does not have the adapter is passed over, and a refusal says which layer and why. ``orthotune export --to lora`` makes
the same factors from files (:func:`~orthotune.rotation.low_rank.lora_factors`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.files.json_file import write_json
from orthotune.layers.base import OFTLayer
from orthotune.rotation.low_rank import check_sizes, lora_factors
from orthotune.tuner.places import adapted_layers, meaning, plain_name

#: What a LoRA lost of each layer, beside its tensors.
ERRORS_FILE = "lora_errors.json"
#: Prefix of the names in a file of PEFT.
IN_FILE = "base_model.model."


@dataclass(frozen=True)
class LowRankLayer:
    """One layer of a LoRA: its rank, and the error of its change relative to the norm of the exact change."""

    layer: str
    rank: int
    error: float


class ErrorsBeside(LoraConfig):
    """PEFT's config of a LoRA, which is saved with the errors of its layers: ``save_as_lora`` saves it."""

    layers: Sequence[LowRankLayer] = ()

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the config, and ``lora_errors.json`` beside it.

        Args:
            save_directory: the folder of the LoRA.
            kwargs: as for PEFT.
        """
        super().save_pretrained(save_directory, **kwargs)
        errors = {layer.layer: {"rank": layer.rank, "relative_error": layer.error} for layer in self.layers}
        write_json(Path(save_directory) / ERRORS_FILE, errors)


@dataclass(frozen=True)
class AsLora:
    """A LoRA that stands for an adapter.

    Attributes:
        config: PEFT's config of it.
        tensors: name in a file of PEFT -> factor, or a module that the adapter trained in full.
        layers: rank and error of each layer.
    """

    config: LoraConfig
    tensors: dict[str, Tensor]
    layers: list[LowRankLayer]


def as_lora(
    model: nn.Module,
    adapter_name: str = "default",
    *,
    rank: int | None = None,
    error: float | None = None,
    progressbar: bool = False,
) -> AsLora:
    """The LoRA closest to an adapter of a model, at the strength that the adapter has now.

    Args:
        model: holds the adapted layers; it is not changed.
        adapter_name: the adapter.
        rank: of each layer, or with ``error`` the largest rank; a layer whose smaller side is less gets that.
        error: largest relative error of each layer, in the Frobenius norm.
        progressbar: show the layers that are done.

    Returns:
        Config, tensors and the error of each layer. The scale of the LoRA is 1.

    Raises:
        ConfigError: the model has no such adapter, neither ``rank`` nor ``error`` is given, or the adapter trains
            biases.
        UnsupportedLayerError: a LoRA cannot stand for a layer; names the layer and the reason.

    Source:
        LoRA, arXiv:2106.09685; the layout of PEFT's files.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> net = nn.Sequential(nn.Linear(8, 4))
        >>> model = get_peft_model(net, OFTConfig(r=2, target_modules=["0"], init_weights=False))
        >>> lora = as_lora(model, rank=4)  # the change of a layer with 4 outputs has at most rank 4
        >>> lora.layers[0].layer, lora.layers[0].rank, lora.layers[0].error < 1e-5
        ('0', 4, True)
    """
    check_sizes(rank, error)
    layers = _convertible(model, adapter_name)
    config = getattr(model, "peft_config", {}).get(adapter_name)
    if (bias := getattr(config, "bias", "none")) != "none":
        raise ConfigError(
            f"adapter '{adapter_name}' as LoRA", got=f"bias='{bias}'",
            needed="an adapter that leaves biases as they are", do="Merge it: orthotune export --to dense",
        )  # fmt: skip
    tensors: dict[str, Tensor] = {}
    layers_of, transposed = [], False
    for key, layer in tqdm(layers, disable=not progressbar, desc="Converting to LoRA"):
        name = plain_name(_below_hosts(model, key))
        down, up, off = _factors(layer, adapter_name, rank, error)
        transposed |= isinstance(layer.get_base_layer(), Conv1D)
        stem = f"{IN_FILE}{name}"
        tensors |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
        layers_of.append(LowRankLayer(name, up.shape[1], off))
    most = max(layer.rank for layer in layers_of)
    # PEFT and vLLM match a key against the end of a name, unless the key anchors the beginning with ^.
    own = {f"^{re.escape(layer.layer)}": layer.rank for layer in layers_of if layer.rank != most}
    modules = [plain_name(_below_hosts(model, key)) for key, _ in model.named_modules() if ".oft_" not in key]
    made = ErrorsBeside(
        r=most, lora_alpha=most, rank_pattern=own, alpha_pattern=dict(own), fan_in_fan_out=transposed,
        target_modules=meaning([layer.layer for layer in layers_of], modules), inference_mode=True,
        base_model_name_or_path=getattr(config, "base_model_name_or_path", None),
        task_type=getattr(config, "task_type", None), modules_to_save=getattr(config, "modules_to_save", None),
    )  # fmt: skip
    made.layers = layers_of
    return AsLora(made, tensors | _saved_in_full(model, adapter_name), layers_of)


def _convertible(model: nn.Module, adapter_name: str) -> list[tuple[str, OFTLayer]]:
    layers = adapted_layers(model, adapter_name)
    if not layers:
        known = sorted(getattr(model, "peft_config", {}))
        raise ConfigError(
            f"adapter '{adapter_name}' as LoRA", got=f"a model with {', '.join(known) or 'no adapter'}",
            needed="the name of an adapter that the model has",
        )  # fmt: skip
    for key, layer in layers:
        if (reason := layer.no_lora_form()) is not None:
            raise UnsupportedLayerError(
                f"layer '{plain_name(_below_hosts(model, key))}' as LoRA", got=reason,
                needed="linear layers, and convolutions without groups, dilation and a padding mode",
                do="Merge the adapter instead: merge_and_unload(), or orthotune export --to dense",
            )  # fmt: skip
    return layers


def _below_hosts(model: nn.Module, key: str) -> str:
    """The name of a module in the base, from its name in a ``PeftModel``, a tuner, or the base itself."""
    if hasattr(model, "base_model") and isinstance(model.base_model, BaseTuner):
        return key.removeprefix(IN_FILE)
    return key.removeprefix("model.") if isinstance(model, BaseTuner) else key


def _factors(
    layer: OFTLayer, adapter_name: str, rank: int | None = None, error: float | None = None
) -> tuple[Tensor, Tensor, float]:
    change = layer.get_delta_weight(adapter_name)
    return lora_factors(change.mT if isinstance(layer.get_base_layer(), Conv1D) else change, rank, error)


def _saved_in_full(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            stem = f"{IN_FILE}{plain_name(_below_hosts(model, key))}"
            saved = module.modules_to_save[adapter_name].state_dict()
            found |= {f"{stem}.{name}": tensor for name, tensor in saved.items()}
    return found


# PEFT's verbs.


def _sizes(rank: float) -> dict[str, Any]:
    """PEFT's ``rank``: a number, or the share of the squared singular values that is kept, ``1 - error**2``.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(rank, int) and not isinstance(rank, bool) and rank > 0:
        return {"rank": rank}
    if isinstance(rank, float) and 0 < rank <= 1:
        return {"error": math.sqrt(1 - rank)}
    raise ConfigError(
        f"rank={rank!r}", needed="an integer of at least 1, or a float above 0 and up to 1: the share of the squared "
        "singular values that is kept",
    )  # fmt: skip


def _ours(model: nn.Module) -> bool:
    return any(isinstance(module, OFTLayer) for module in model.modules())


def of_module(original: Callable[..., Any]) -> Callable[..., Any]:
    """PEFT's conversion of one layer, which takes ours of every kind.

    Args:
        original: PEFT's function.
    """

    @wraps(original)
    @torch.no_grad()
    def _convert_module_to_lora(module: Any, rank: float, adapter_name: str = "default") -> tuple[Tensor, Tensor, int]:
        if not isinstance(module, OFTLayer):
            return original(module, rank, adapter_name)
        if adapter_name not in module.slots:
            return torch.empty(0), torch.empty(0), 0  # PEFT leaves out a layer of rank 0
        down, up, _ = _factors(module, adapter_name, **_sizes(rank))
        return down, up, up.shape[1]

    return _convert_module_to_lora


def converting(original: Callable[..., Any]) -> Callable[..., Any]:
    """PEFT's ``convert_to_lora``, for models with our layers by :func:`as_lora`.

    Args:
        original: PEFT's function.
    """

    @wraps(original)
    def convert_to_lora(
        model: nn.Module,
        rank: float,
        adapter_name: str = "default",
        progressbar: bool = False,
        compile_kwargs: dict[str, Any] | None = None,
    ) -> tuple[LoraConfig, dict[str, Tensor]]:
        if not _ours(model):
            return original(model, rank, adapter_name, progressbar, compile_kwargs)
        made = as_lora(model, adapter_name, progressbar=progressbar, **_sizes(rank))
        return made.config, made.tensors

    return convert_to_lora
