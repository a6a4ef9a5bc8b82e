"""PEFT's folder since 0.16: ``adapter_config.json`` and packed upper triangles in ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.formats.adapter_state import AdapterState, LayerState, Map
from orthotune.formats.beyond_stock import ASSUMED, FORMAT_VERSION, ORTHOTUNE_TYPE
from orthotune.formats.safetensors_file import read_tensors, shortened
from orthotune.rotation.packing import block_size_of

CONFIG_NAME, WEIGHTS_NAME = "adapter_config.json", "adapter_model.safetensors"

_ROTATION = re.compile(r"^(?P<layer>.*)\.oft_(?P<embedding>embedding_)?R\.(?:(?P<part>.+)\.)?weight$")
_MAGNITUDE = re.compile(r"^(?P<layer>.*)\.oft_magnitude(?:\.weight)?$")
_OLDER = {"oft_r": "PEFT 0.8 to 0.15", "oft_s": "PEFT 0.14 or 0.15", "boft_R": "BOFT", "lora_A": "LoRA"}


def detect(folder: Path) -> bool:
    """Whether the folder holds an adapter of PEFT's, of whichever kind."""
    return (folder / CONFIG_NAME).is_file()


def read(folder: str | Path) -> AdapterState:
    """The adapter in a folder that PEFT or orthotune wrote.

    Raises:
        AdapterFileError: a file is missing or damaged, the adapter is of another kind, or holds NaN or infinity.

    Example:
        >>> read("runs/sft/adapter").layers.keys()  # doctest: +SKIP
        dict_keys(['model.layers.0.self_attn.q_proj', ...])
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = folder / WEIGHTS_NAME
    if not weights.exists() and (folder / "adapter_model.bin").exists():
        raise AdapterFileError(
            f"{folder} holds adapter_model.bin, a pickle, which can run code when it is opened",
            needed=WEIGHTS_NAME,
            do="Save the adapter again with safe_serialization=True",
        )
    tensors = read_tensors(weights)
    return AdapterState(_layers(tensors, config, weights), config, _other(tensors), folder)


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's config as a plain mapping.

    Raises:
        AdapterFileError: there is none, it is no JSON object, or it configures another kind of adapter.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterFileError(f"{folder} is not an adapter", needed=f"a folder with {CONFIG_NAME}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterFileError(f"{path} is not JSON", got=str(error), do="Copy or download the file again") from error
    if not isinstance(config, dict):
        raise AdapterFileError(f"{path} is not a config", got=type(config).__name__, needed="a JSON object")
    kind = config.get("peft_type")
    if kind not in ("OFT", ORTHOTUNE_TYPE):
        raise AdapterFileError(
            f"{path} configures another kind of adapter",
            got=f"peft_type {kind!r}",
            needed=f"'OFT' or '{ORTHOTUNE_TYPE}'",
        )
    version = config.get("format_version", FORMAT_VERSION)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise AdapterFileError(
            f"{path} was written by a newer orthotune",
            got=f"format_version {version!r}",
            needed=f"{FORMAT_VERSION} or less",
            do="Upgrade with: pip install -U orthotune",
        )
    return config


def map_of(config: Mapping[str, Any]) -> Map:
    """Which map turns skew blocks into rotations in the version that trained the adapter.

    Example:
        >>> map_of({"peft_type": "OFT", "use_cayley_neumann": True})
        'neumann_legacy'
    """
    # PEFT's own default is the series; ours is the exact map.
    if not config.get("use_cayley_neumann", config.get("peft_type") != ORTHOTUNE_TYPE):
        return "exact"
    series = config.get("neumann_series")
    if series is None:
        # PEFT records its version since 0.18, the version that changed the series.
        found = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version") or ""))
        series = "current" if found and (int(found[1]), int(found[2])) >= (0, 18) else "legacy"
    return "neumann_legacy" if series == "legacy" else "neumann"


def beyond_stock(config: Mapping[str, Any]) -> list[str]:
    """The fields and layer kinds because of which stock PEFT cannot express the adapter; empty if it can.

    Example:
        >>> beyond_stock({"side": "out", "scaled": False})
        ['side']
    """
    fields = [name for name, stock in ASSUMED.items() if (config.get(name) or stock) != stock]
    kinds = [str(kind) for kind in config.get("needs_orthotune_for") or []]
    return [name for name in fields if name != "needs_orthotune_for"] + kinds


def _layers(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], path: Path) -> dict[str, LayerState]:
    rotations: dict[str, dict[str, torch.Tensor]] = {}
    embeddings: set[str] = set()
    for key, tensor in tensors.items():
        if found := _ROTATION.match(key):
            _check_packed(key, tensor, path)
            layer = _bare(found["layer"])
            rotations.setdefault(layer, {})[found["part"] or ""] = tensor
            if found["embedding"]:
                embeddings.add(layer)
    if not rotations:
        kinds = sorted({kind for key in tensors for mark, kind in _OLDER.items() if f".{mark}" in key})
        raise AdapterFileError(
            f"{path} holds no rotation",
            got=f"tensors of {' and '.join(kinds)}" if kinds else f"{shortened(tensors) or 'no tensor at all'}",
            needed="names that end in oft_R.weight",
        )
    # Experts share a tensor, and the radius of each depends on how many there are, which only the base model knows.
    eps = float(config.get("eps") or 0) if config.get("coft") and not config.get("target_parameters") else None
    magnitudes = {_bare(found["layer"]): t for key, t in tensors.items() if (found := _MAGNITUDE.match(key))}
    return {
        name: LayerState(
            rotations=parts,
            side=config.get("side") or "in",
            map=map_of(config),
            terms=int(config.get("num_cayley_neumann_terms") or 5),
            shared=bool(config.get("block_share")),
            scaled=bool(config.get("scaled")),
            eps=eps,
            magnitude=magnitudes.get(name),
            embedding=name in embeddings,
        )
        for name, parts in rotations.items()
    }


def _check_packed(key: str, tensor: torch.Tensor, path: Path) -> None:
    try:
        packed = tensor.dim() == 2 and tensor.numel() > 0 and block_size_of(tensor.shape[-1]) > 0
    except OrthotuneError:
        packed = False
    if not packed:
        raise AdapterFileError(
            f"Tensor '{key}' of {path} is no packed rotation",
            got=f"shape {list(tensor.shape)}",
            needed="[blocks, b(b-1)/2] for some block size b",
        )


def _other(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {_bare(key): t for key, t in tensors.items() if not _ROTATION.match(key) and not _MAGNITUDE.match(key)}


def _bare(name: str) -> str:
    return name.removeprefix("base_model.model.")
