"""What the adapter that a run continues decides of its settings, read from its files without loading it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthotune.errors import OrthotuneError, RecipeError, nearest
from orthotune.files.json_file import read_json
from orthotune.files.run_adapter import adapter_in

#: Settings of a new adapter, which have no meaning where one is continued.
DECIDED = (
    "target_modules", "transform", "variant", "factors", "block_size", "r", "eps", "rotation", "lora_rank",
    "lora_alpha", "lora",
)  # fmt: skip
#: ``peft_type`` -> method.
METHODS = {
    "OFT": "oft", "ORTHOTUNE": "oft", "BOFT": "oft", "HRA": "oft", "ROAD": "oft", "PSOFT": "oft", "LORA": "lora",
}  # fmt: skip
CONFIG = "adapter_config.json"
#: The file of a LoRA of an image model, as diffusers writes it.
PIPELINE_WEIGHTS = "pytorch_lora_weights.safetensors"


def decided_by(adapter: str | Path) -> dict[str, Any]:
    """The settings that an adapter decides: ``method``, and ``rotation`` and ``eps`` as far as training needs them.

    Args:
        adapter: a file, a folder with an adapter, or the directory of a run.

    Raises:
        RecipeError: no adapter is there, or one of a method that is not trained here.

    Example:
        >>> decided_by("adapters/style.safetensors")  # doctest: +SKIP
        {'method': 'oft'}
    """
    path, given = Path(adapter), f"adapter={adapter}"
    if not str(adapter).strip() or not path.exists():
        beside = nearest(path.name, [one.name for one in path.parent.iterdir()], 1) if path.parent.is_dir() else []
        near = f"Did you mean {path.with_name(beside[0])}?" if beside else "Check the path"
        raise RecipeError(given, got="no such file or folder", needed="an adapter, or the directory of a run", do=near)
    try:
        folder = adapter_in(path)
    except OrthotuneError as fault:
        do = fault.do if "entire" not in str(fault) else None
        raise RecipeError(given, got=fault.got, needed=fault.needed, do=do) from fault
    if folder.is_file():  # single files are of tools that train rotations; LoRA is a folder, or diffusers' file
        return {"method": "lora" if folder.name == PIPELINE_WEIGHTS else "oft"}
    if (folder / PIPELINE_WEIGHTS).is_file():
        return {"method": "lora"}
    if not (folder / CONFIG).is_file():
        raise RecipeError(given, got=f"a folder without {CONFIG}", needed="an adapter, or the directory of a run")
    config = read_json(folder / CONFIG)
    kind = str(config.get("peft_type"))
    if kind not in METHODS:
        raise RecipeError(given, got=f"an adapter of the method {kind}", needed="OFT or LoRA")
    if METHODS[kind] == "lora":
        return {"method": "lora"}
    layers = config.get("layer_settings") or {}
    records = [config, *(one for one in layers.values() if isinstance(one, dict))]
    found: dict[str, Any] = {"method": "coft" if config.get("coft") else "oft"}
    if config.get("coft") and isinstance(config.get("eps"), float):
        found["eps"] = config["eps"]
    if any(one.get("magnitude") for one in records):
        found["rotation"] = {"magnitude": True}
    return found
