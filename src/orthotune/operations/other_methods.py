"""Adapters of PEFT's other methods, above all LoRA: loaded and merged by PEFT itself, described from their file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils.other import get_pattern_key
from torch import Tensor

from orthotune.errors import AdapterFileError, ConfigError
from orthotune.files.run_adapter import adapter_in
from orthotune.formats.adapter_file import CONFIG_NAME, open_adapter, read_config
from orthotune.operations.lora_file import DOWN, lora_at

#: Values of ``peft_type`` that the readers of this package take.
OURS = ("OFT", "BOFT", "ORTHOTUNE", "HRA", "ROAD", "PSOFT")
#: Ends of the names of LoRA's two factors.
LORA_A, LORA_B = (".lora_A.weight", ".lora_embedding_A"), (".lora_B.weight", ".lora_embedding_B")


def other_method(path: str | Path) -> str | None:
    """The method of an adapter that is not one of rotations, as its ``peft_type``; None for any other path.

    Args:
        path: a folder as PEFT writes it, a run directory, or anything else.

    Example:
        >>> other_method("adapters/style.safetensors") is None
        True
    """
    folder = adapter_in(path)
    if (lora := lora_at(folder)) is not None:
        return "LORA" if lora.format == "diffusers-lora" else str(lora.config.get("peft_type"))
    if not (folder / CONFIG_NAME).is_file():
        return None
    kind = read_config(folder).get("peft_type")
    return None if kind is None or kind in OURS else str(kind)


def load_any(model: Any, path: str | Path) -> Any:
    """Load an adapter of rotations, or of another method of PEFT, on a model.

    Args:
        model: any module that PEFT takes.
        path: a file or folder of any readable format, a folder that PEFT wrote, or a run directory.

    Raises:
        AdapterFileError: the adapter is damaged, or does not belong to this model.
    """
    from orthotune.operations.load import load_adapter

    if other_method(path) is None:
        return load_adapter(model, path)[0]
    return PeftModel.from_pretrained(model, adapter_in(path))


def recorded_base(path: str | Path) -> str | None:
    """The base that an adapter of another method records.

    Args:
        path: a folder that PEFT wrote, or a run directory.
    """
    lora = lora_at(path)
    found = lora.base if lora is not None else read_config(adapter_in(path)).get("base_model_name_or_path")
    return str(found) if found else None


def refuse_for_other(method: str, **given: Any) -> None:
    """Refuse arguments of a merge that say something of rotations alone.

    Raises:
        ConfigError: names the first of them.
    """
    for name, value in given.items():
        if value:
            raise ConfigError(
                f"{name} with an adapter of the method {method}", needed="an adapter of rotations",
                do="For another strength: orthotune.rewind(ADAPTER, STRENGTH, OUT), then merge the result"
                if name == "strength"
                else f"Leave {name} out: PEFT merges this adapter in memory",
            )  # fmt: skip


def inspect_lora(path: str | Path) -> dict[str, Any]:
    """The content of a LoRA, layer by layer: rank, scale, parameters, and the Frobenius norm of its change.

    Args:
        path: a folder that PEFT wrote, or a run directory.

    Returns:
        Plain values ready for JSON.

    Raises:
        AdapterFileError: the adapter is of a third method, or damaged.
    """
    folder, method = adapter_in(path), other_method(path)
    if method != "LORA":
        raise AdapterFileError(f"{folder}", got=f"an adapter of the method {method}", needed="rotations or a LoRA")
    lora = lora_at(folder)
    if lora is not None and lora.format == "diffusers-lora":
        config, tensors = {"base_model_name_or_path": lora.base}, lora.tensors()
        alphas = {name: lora.scale(name) * lora.shapes[name + DOWN][0] for name in lora.layers}
        rows = [_row(f"{name}{DOWN}", DOWN, tensors, {"lora_alpha": alpha}) for name, alpha in alphas.items()]
    else:
        opened = open_adapter(folder)
        config, tensors = dict(opened.config or {}), opened.read(opened.shapes)
        rows = [_row(key, end, tensors, config) for key in tensors for end in LORA_A if key.endswith(end)]
    factors = {name for row in rows for name in row.pop("factors")}
    return {
        "adapter": str(folder),
        "base_model": config.get("base_model_name_or_path"),
        "peft_type": method,
        "peft_version": config.get("peft_version"),
        "format": lora.format if lora is not None else "peft-lora",
        "parameters": sum(row["parameters"] for row in rows),
        "other_tensors": {name: list(tensor.shape) for name, tensor in tensors.items() if name not in factors},
        "layers": rows,
    }


def _row(key: str, end: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Any]:
    stem = key.removesuffix(end)
    other = stem + LORA_B[LORA_A.index(end)]
    if other not in tensors:
        raise AdapterFileError(f"tensor {key!r}", got=f"no {other!r} beside it", do="Copy or download the file again")
    A, B = tensors[key].float().flatten(1), tensors[other].float().flatten(1)
    layer, rank = stem.removeprefix("base_model.model."), A.shape[0]
    patterns = config.get("alpha_pattern") or {}
    alpha = float(patterns.get(get_pattern_key(list(patterns), layer), config.get("lora_alpha", rank)))
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    # The norm of B A by the products of each factor with itself, which are rank x rank.
    norm = float(((B.T @ B) * (A @ A.T)).sum().clamp(min=0).sqrt()) * scale
    return {
        "layer": layer, "rank": rank, "scale": scale, "parameters": A.numel() + B.numel(), "change": norm,
        "factors": (key, other),
    }  # fmt: skip
