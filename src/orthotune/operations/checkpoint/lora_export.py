"""Export an adapter as LoRA: a low-rank approximation of each weight's change, in the layout for its base.

A transformers model gets a PEFT folder, which PEFT and vLLM load; a diffusers folder gets
``pytorch_lora_weights.safetensors``, which ``load_lora_weights`` reads; a single file gets one file with the names of
sd-scripts, which ComfyUI and the A1111 web UIs read and add to the weights. The scale is 1 throughout: ``alpha`` is the
rank of the layer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import UnsupportedLayerError
from orthotune.files.json_file import write_json
from orthotune.files.safetensors_file import write_tensors
from orthotune.formats.names.modules import name_in_tools
from orthotune.operations.checkpoint.changes import Change, changes
from orthotune.operations.checkpoint.diff_export import spelled_changes
from orthotune.operations.checkpoint.stream import DenseMerge
from orthotune.rotation.low_rank import lora_factors
from orthotune.tuner.lora_conversion import ERRORS_FILE
from orthotune.tuner.places import meaning

PIPELINE_FILE = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Factors:
    """One layer of a LoRA: ``W + up down``, and the relative error of the change."""

    change: Change
    down: Tensor
    up: Tensor
    error: float

    @property
    def rank(self) -> int:
        """Columns of ``up``."""
        return self.up.shape[1]


def factors(
    merge: DenseMerge,
    rank: int | None,
    error: float | None,
    on_layer: Callable[[Factors], None] | None = None,
    wanted: Sequence[Change] | None = None,
) -> list[Factors]:
    """Approximate the change of every weight by LoRA factors, ``(r, in, *kernel)`` and ``(out, r, 1...)``.

    Args:
        merge: the adapter on its base.
        rank: see :func:`~orthotune.rotation.low_rank.low_rank`.
        error: largest relative error, see there.
        on_layer: called after each layer.
        wanted: the changes; None for those of ``merge``.

    Raises:
        UnsupportedLayerError: a layer has no LoRA form, see :meth:`~orthotune.layers.base.OFTLayer.no_lora_form`.
        ConfigError, MergeError: as for :func:`~orthotune.rotation.low_rank.low_rank` and
            :func:`~orthotune.operations.checkpoint.changes.changes`.
    """
    found = []
    wanted = list(changes(merge)) if wanted is None else wanted
    added = merge.base.single_file  # the tools that read such a file add the product of the factors to the weight
    for change in wanted:
        if (reason := change.layer.no_lora_form(added)) is not None:
            raise UnsupportedLayerError(
                f"layer '{change.name}' as LoRA", got=reason,
                needed="linear layers, and convolutions without groups, dilation and a padding mode",
                do="Export with --to dense or --to diff",
            )  # fmt: skip
    for change in wanted:
        down, up, off = lora_factors(change.compute(), rank, error)
        found.append(Factors(change, down, up, off))
        if on_layer is not None:
            on_layer(found[-1])
    return found


def write_lora(merge: DenseMerge, layers: list[Factors], out: Path, **fields: Any) -> None:
    """Write the factors in the layout of the tools that load this base.

    Args:
        merge: the adapter on its base; the kind of base decides the layout.
        layers: from :func:`factors`.
        out: an existing, empty folder, or the name of a file for a base that is one file.
        fields: further fields of a PEFT config (``base_model_name_or_path``, ``task_type``).

    Raises:
        UnsupportedLayerError: the tools have one layer for several of the adapter, or know none of them.
        OutputError: ``out`` cannot be written to.
    """
    errors = {layer.change.name: {"rank": layer.rank, "relative_error": layer.error} for layer in layers}
    if merge.base.single_file:
        write_tensors(out, _kohya(layers, merge), {"orthotune_lora_errors": json.dumps(errors)})
        return
    if any(part.component for part in merge.base.parts):
        write_tensors(out / PIPELINE_FILE, _diffusers(layers), {"format": "pt"})
    else:
        _peft(merge, layers, out, fields)
    write_json(out / ERRORS_FILE, errors)


def _diffusers(layers: list[Factors]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for layer in layers:
        stem = name_in_tools(layer.change.component, layer.change.module)
        # load_lora_weights expects other names for the factors of CLIP's layers
        text = layer.change.component.startswith("text_encoder")
        down, up = ("lora_linear_layer.down", "lora_linear_layer.up") if text else ("lora_A", "lora_B")
        found |= {f"{stem}.{down}.weight": layer.down, f"{stem}.{up}.weight": layer.up}
    return found


def _kohya(layers: list[Factors], merge: DenseMerge) -> dict[str, Tensor]:
    spelling = spelled_changes([layer.change for layer in layers], merge.base.rows())
    if spelling.parts:
        name, parts = next(iter(spelling.parts.items()))
        raise UnsupportedLayerError(
            f"a LoRA for the tools that load {merge.base.path.name}", got=f"one layer {name} there for {len(parts)}",
            needed="a layer for each", do="Export with --to diff or --to dense",
        )  # fmt: skip
    found: dict[str, Tensor] = {}
    for layer in layers:
        name = spelling.names[layer.change.name]
        found |= {f"{name}.lora_down.weight": layer.down, f"{name}.lora_up.weight": layer.up}
        found[f"{name}.alpha"] = torch.tensor(float(layer.rank))
    return found


def _peft(merge: DenseMerge, layers: list[Factors], out: Path, fields: dict[str, Any]) -> None:
    ranks = {layer.change.module: layer.rank for layer in layers}
    most = max(ranks.values())
    # PEFT and vLLM match a key against the end of a name, unless the key anchors the beginning with ^.
    own = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != most}
    modules = [name for plan in merge.plans for model, _ in plan.skeleton.models.values() for name, _ in _named(model)]
    config = {
        "peft_type": "LORA", "r": most, "lora_alpha": most, "rank_pattern": own, "alpha_pattern": own,
        "target_modules": meaning(list(ranks), modules), "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
        "fan_in_fan_out": any(layer.change.stored_transposed for layer in layers), "modules_to_save": None,
        "task_type": None, "base_model_name_or_path": str(merge.base.path), **fields,
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for layer in layers:
        stem = f"base_model.model.{layer.change.module}"
        tensors |= {f"{stem}.lora_A.weight": layer.down, f"{stem}.lora_B.weight": layer.up}
    write_tensors(out / "adapter_model.safetensors", tensors, {"format": "pt"})
    write_json(out / "adapter_config.json", config, sort_keys=True)


def _named(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name.replace(".base_layer", ""), module) for name, module in model.named_modules() if ".oft_" not in name]
