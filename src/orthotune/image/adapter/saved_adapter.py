"""Save and load the adapter of an image model: safetensors in the layout of PEFT or of diffusers."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from torch import Tensor

from orthotune.errors import AdapterFileError, ConfigError, OrthotuneError
from orthotune.files.json_file import read_json, write_json
from orthotune.files.run_adapter import IMAGE_RECIPES, STARTED
from orthotune.files.safetensors_file import read_tensors, write_tensors
from orthotune.files.safetensors_header import check_header
from orthotune.formats.adapter_file import CONFIG_NAME, WEIGHTS_NAME
from orthotune.formats.peft.beyond_stock import ORTHOTUNE_TYPE
from orthotune.formats.peft.names import PREFIX
from orthotune.image.adapter.adapters import NAME
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.loop.quiet_loading import quiet_loading

#: file name of a LoRA in diffusers
LORA_WEIGHTS = "pytorch_lora_weights.safetensors"
#: the second expert of Wan 2.2
SECOND = "transformer_2"
#: key in the header of an adapter's file: which expert it is of
EXPERT = "orthotune.expert"


def save_adapter(family: PipelineFamily, folder: Path) -> None:
    """Write the adapter of the pipeline.

    Rotations are written as a PEFT folder, ``adapter_config.json`` and ``adapter_model.safetensors``. For one component
    the names are those of PEFT, and stock PEFT can load the folder if it can express the adapter. For several
    components the names are ``component.module``, which :func:`orthotune.load_adapter` reads for the pipeline. A LoRA
    is written as the file that ``load_lora_weights`` of diffusers reads.

    Args:
        family: the pipeline with its adapter.
        folder: an existing folder.

    Raises:
        ConfigError: the pipeline has no adapter. After full finetuning, save the pipeline itself.
        OutputError: the files cannot be written.
    """
    parts = {name: getattr(family.pipeline, name) for name in (family.denoiser_name, *family.text_encoders)}
    parts = {name: part for name, part in parts.items() if NAME in (getattr(part, "peft_config", None) or {})}
    if not parts:
        raise ConfigError(
            f"an adapter of {family.name} to save", got="a pipeline without one",
            do="Save weights that were trained in full with pipeline.save_pretrained",
        )  # fmt: skip
    tensors = {name: _float32(get_peft_model_state_dict(part, adapter_name=NAME)) for name, part in parts.items()}
    configs: dict[str, Any] = {name: part.peft_config[NAME].to_dict() for name, part in parts.items()}
    base = str(getattr(family.pipeline, "name_or_path", None) or family.pipeline.config.get("_name_or_path") or "")
    for config in configs.values():
        config["base_model_name_or_path"] = base or None
    if all(config["peft_type"] == "LORA" for config in configs.values()):
        _save_lora(family, folder, tensors, configs)
    else:
        save_rotations(folder, tensors, configs)
    if family.expert is not None:  # an adapter that is copied out of its run says itself which expert it is of
        for path in _weights(folder):
            write_tensors(path, read_tensors(path), {**check_header(path).metadata, EXPERT: family.expert})


def load_adapter(family: PipelineFamily, folder: Path) -> None:
    """Load an adapter that :func:`save_adapter` or another tool wrote; its parameters are trainable.

    Args:
        family: the pipeline, changed in place.
        folder: with the adapter, or a file with one.

    Raises:
        AdapterFileError: the files are damaged or belong to another model.
    """
    from orthotune.operations.load import load_adapter as load_rotations

    folder = folder.parent if folder.name == LORA_WEIGHTS else folder
    if (folder / LORA_WEIGHTS).is_file():
        try:
            with quiet_loading():
                second = {"load_into_transformer_2": True} if family.denoiser_name == SECOND else {}
                family.pipeline.load_lora_weights(str(folder), adapter_name=NAME, weight_name=LORA_WEIGHTS, **second)
        except (ValueError, OSError, RuntimeError, KeyError, SafetensorError) as fault:
            raise AdapterFileError(
                f"{folder / LORA_WEIGHTS} for {family.name}", got=str(fault).splitlines()[0]
            ) from fault
        for part in family.modules().values():  # diffusers leaves the adapter of a text encoder frozen
            for name, parameter in part.named_parameters():
                if f".{NAME}." in name:
                    parameter.requires_grad_(True)
    else:
        # Not the pipeline itself: the second expert of Wan 2.2 has layers of the same names.
        load_rotations({family.denoiser_name: family.denoiser, **family.text_encoders}, folder, NAME)


def expert_of(adapter: Path) -> str | None:
    """Which of several denoisers an adapter is of, whose layers share names.

    The header of the adapter's file says this; files without such an entry say it by the run that they lie in.

    Args:
        adapter: file or folder.

    Returns:
        ``high-noise`` or ``low-noise``; None where neither names one.

    Example:
        >>> expert_of(Path("runs/style/adapter"))
    """
    for path in _weights(adapter):
        if path.suffix == ".safetensors" and (found := check_header(path).metadata.get(EXPERT)):
            return str(found)
    for folder in (adapter.parent, adapter.parent.parent):
        with suppress(OrthotuneError):  # a file of that name that is no record of a run
            started = read_json(folder / STARTED) if (folder / STARTED).is_file() else {}
            if started.get("recipe") in IMAGE_RECIPES:
                expert: str | None = started.get("expert")
                return expert
    return None


def _weights(adapter: Path) -> list[Path]:
    """The files with the tensors of an adapter."""
    if adapter.is_file():
        return [adapter]
    return [path for name in (WEIGHTS_NAME, LORA_WEIGHTS) if (path := adapter / name).is_file()]


def save_rotations(folder: Path, tensors: dict[str, dict[str, Tensor]], configs: dict[str, Any]) -> None:
    """Write rotations of one or several networks of a pipeline as one PEFT folder.

    Args:
        folder: an existing folder.
        tensors: component -> name in its network -> tensor.
        configs: component -> config of its adapter.

    Raises:
        OutputError: the files cannot be written.
    """
    several = len(tensors) > 1
    flat = {
        (f"{component}." if several else PREFIX) + key: tensor
        for component, held in tensors.items()
        for key, tensor in held.items()
    }
    first = next(iter(configs.values()))
    config = dict(first)
    if several:  # stock PEFT would find none of the names on a single model, and silently load nothing
        config["peft_type"] = ORTHOTUNE_TYPE
        for name in ("target_modules", "exclude_modules", "needs_orthotune_for"):
            merged = {value for held in configs.values() for value in held.get(name) or ()}
            config[name] = sorted(merged) or None
    config["inference_mode"] = True
    write_tensors(folder / WEIGHTS_NAME, flat, {"format": "pt"})
    written = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    write_json(folder / CONFIG_NAME, written, sort_keys=True, nan_as_null=False)


def split_rotations(folder: Path, into: Path) -> dict[str, Path]:
    """Divide a folder that :func:`save_rotations` wrote for several networks into one PEFT folder for each.

    Args:
        folder: with the adapter.
        into: an existing folder.

    Returns:
        Component -> its folder; empty if the adapter is one network's.

    Raises:
        AdapterFileError: the files are damaged.
    """
    by_component: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(folder / WEIGHTS_NAME).items():
        if name.startswith(PREFIX):
            return {}
        component, _, rest = name.partition(".")
        by_component.setdefault(component, {})[PREFIX + rest] = tensor
    for component, tensors in by_component.items():
        (into / component).mkdir()
        write_tensors(into / component / WEIGHTS_NAME, tensors, {"format": "pt"})
        shutil.copyfile(folder / CONFIG_NAME, into / component / CONFIG_NAME)
    return {component: into / component for component in by_component}


def _save_lora(
    family: PipelineFamily, folder: Path, tensors: dict[str, dict[str, Tensor]], configs: dict[str, Any]
) -> None:
    arguments: dict[str, Any] = {}
    for component, held in tensors.items():
        # diffusers writes the LoRA of either expert of Wan 2.2 under the name of the first one.
        name = "transformer" if component == SECOND else component
        arguments[f"{name}_lora_layers"] = held
        arguments[f"{name}_lora_adapter_metadata"] = configs[component]
    type(family.pipeline).save_lora_weights(save_directory=str(folder), **arguments)


def _float32(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in tensors.items()}
