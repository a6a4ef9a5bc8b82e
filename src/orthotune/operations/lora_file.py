"""LoRAs, as runs with ``method=lora`` write them: identified, and written under the names that ComfyUI loads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from orthotune.errors import AdapterFileError, ConfigError
from orthotune.files.json_file import json_object
from orthotune.files.run_adapter import adapter_in
from orthotune.files.safetensors_file import write_tensors
from orthotune.formats.adapter_file import CONFIG_NAME, open_adapter, read_config
from orthotune.formats.base_weights import BaseWeights
from orthotune.formats.names.spelling import spelled
from orthotune.formats.peft.sizes import size_key_means

#: The file of a LoRA of an image model, as ``save_lora_weights`` of diffusers writes it.
PIPELINE_WEIGHTS = "pytorch_lora_weights.safetensors"
#: Entry of its header with the configs of all components, their fields after the name of the component.
HEADER = "lora_adapter_metadata"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
#: Formats that a LoRA can be written in.
TARGETS = ("comfyui",)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA on disk; its tensors are read when they are needed.

    Attributes:
        path: the file with the tensors.
        format: ``diffusers-lora`` or ``peft-lora``.
        config: layer -> rank and alpha are found by its fields; those of a pipeline begin with the component.
        shapes: name -> shape of each tensor.
        dtypes: name -> dtype of each tensor, as safetensors names them.
    """

    path: Path
    format: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @property
    def layers(self) -> list[str]:
        """The names of the layers, with the component of a pipeline."""
        return [name.removesuffix(DOWN) for name in self.shapes if name.endswith(DOWN)]

    @property
    def base(self) -> str | None:
        """The base that the file records."""
        fields = ((key.rpartition(".")[2], value) for key, value in self.config.items())
        found = [value for field, value in fields if field == "base_model_name_or_path" and value]
        return str(found[0]) if found else None

    def scale(self, layer: str) -> float:
        """The factor of ``B A`` in the change of a layer's weight."""
        rank, component = self.shapes[layer + DOWN][0], layer.partition(".")[0]
        own = {k.removeprefix(f"{component}."): v for k, v in self.config.items() if k.startswith(f"{component}.")}
        fields = own if "lora_alpha" in own else self.config
        module = layer.removeprefix("base_model.model.").removeprefix(f"{component}." if own else "")
        patterns: Mapping[str, Any] = fields.get("alpha_pattern") or {}
        own_alpha = [value for key, value in patterns.items() if _means(key, module)]
        alpha = float(own_alpha[0] if own_alpha else fields.get("lora_alpha", rank))
        return alpha / (math.sqrt(rank) if fields.get("use_rslora") else rank)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors."""
        with safe_open(self.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in self.shapes}


def _means(key: str, module: str) -> bool:
    try:
        return size_key_means(key, module)
    except re.error as fault:
        raise AdapterFileError(
            f"alpha_pattern key {key[:80]!r}", got=str(fault), needed="a regular expression"
        ) from fault


def lora_at(path: str | Path) -> LoraFile | None:
    """The LoRA at a path; None if something else is there.

    Args:
        path: a folder of PEFT or of diffusers, the file of diffusers, or a run directory.

    Raises:
        AdapterFileError: the file is damaged.

    Example:
        >>> lora_at("adapters/style.safetensors") is None
        True
    """
    folder = adapter_in(path)
    if folder.is_file():
        return _pipeline(folder) if folder.name == PIPELINE_WEIGHTS else None
    if (folder / PIPELINE_WEIGHTS).is_file():
        return _pipeline(folder / PIPELINE_WEIGHTS)
    if not (folder / CONFIG_NAME).is_file() or read_config(folder).get("peft_type") != "LORA":
        return None
    opened = open_adapter(folder)
    shapes, dtypes, _ = _header(opened.path) if opened.path.suffix == ".safetensors" else (opened.shapes, {}, {})
    return LoraFile(opened.path, "peft-lora", dict(opened.config or {}), shapes, dtypes)


def write_lora_names(lora: LoraFile, out: Path, to: str, base: BaseWeights | None) -> list[str]:
    """Write a LoRA under the names of a tool.

    Args:
        lora: from :func:`lora_at`.
        out: the new file.
        to: one of ``TARGETS``.
        base: of the LoRA, needed where names depend on the family.

    Returns:
        The layers that the tool will ignore.

    Raises:
        ConfigError: the target is for rotations alone, or the LoRA holds more than pairs of factors.
        AdapterFileError: a factor is missing.
        UnsupportedLayerError: as for :func:`~orthotune.formats.names.spelling.spelled`, or the tool has one layer for
            several of the LoRA.
        OutputError: the file cannot be written.
    """
    check_target(lora, to)
    odd = [name for name in lora.shapes if not name.endswith((DOWN, UP))]
    if odd:
        raise ConfigError(
            f"{lora.path} for ComfyUI", got=f"tensors beside the factors: {', '.join(odd[:3])}",
            needed="a LoRA without DoRA, biases or modules trained in full", do="Merge it instead",
        )  # fmt: skip
    alone = [name for name in lora.layers if name + UP not in lora.shapes]
    if alone:
        raise AdapterFileError(
            f"{lora.path}", got=f"{alone[0]}{DOWN} and no {alone[0]}{UP}", needed="both factors of each layer",
            do="Copy or download it again",
        )  # fmt: skip
    spelling = spelled(lora.layers, to, None if base is None else base.modules)
    if spelling.parts:
        name, parts = next(iter(spelling.parts.items()))
        raise ConfigError(
            f"{lora.path} for ComfyUI", got=f"one layer {name} there for {len(parts)} of the LoRA",
            needed="a layer for each", do="Merge it instead",
        )  # fmt: skip
    tensors, found = lora.tensors(), dict[str, Tensor]()
    for layer, name in spelling.names.items():
        down, up = tensors[layer + DOWN], tensors[layer + UP]
        alpha = torch.tensor(lora.scale(layer) * down.shape[0])
        found |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": alpha}
    write_tensors(out, {name: tensor.contiguous() for name, tensor in found.items()}, {"format": "pt"})
    return list(spelling.unknown)


def check_target(lora: LoraFile, to: str) -> None:
    """Refuse targets that hold rotations alone.

    Args:
        lora: from :func:`lora_at`.
        to: a target of conversions.

    Raises:
        ConfigError: the target is not for LoRAs.
    """
    if to not in TARGETS:
        raise ConfigError(
            f"--to {to}",
            got=f"a LoRA, {lora.path.name}",
            needed=f"--to {', '.join(TARGETS)}; the others hold rotations",
        )


def _pipeline(path: Path) -> LoraFile:
    shapes, dtypes, metadata = _header(path)
    try:
        config = json_object(metadata.get(HEADER) or "{}")
    except ValueError as fault:
        raise AdapterFileError(f"the header of {path}", got=f"{HEADER}: {fault}", needed="a JSON object") from fault
    return LoraFile(path, "diffusers-lora", config, shapes, dtypes)


def _header(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
            return shapes, {name: one.get_dtype() for name, one in slices.items()}, dict(file.metadata() or {})
    except Exception as fault:  # safetensors has several errors for damaged files
        raise AdapterFileError(f"{path} is damaged", got=str(fault), do="Copy or download it again") from fault
