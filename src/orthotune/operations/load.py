"""``load_adapter``: load an adapter of any readable format on a model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftModel, get_peft_model, inject_adapter_in_model
from peft.utils import PeftType, set_peft_model_state_dict
from torch import nn

from orthotune.errors import AdapterFileError, ConfigError, nearest
from orthotune.files.names import escaped
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.fused import split_fused
from orthotune.formats.names.modules import match_names
from orthotune.layers.base import OFTLayer
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.fitting.components import adaptable, bare, components_of
from orthotune.operations.fitting.fit import Fit, config_for, fit, outputs_of
from orthotune.operations.fitting.report import LoadReport
from orthotune.rotation.strength import Kind
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.old_files import todays_names

#: Fields of a PEFT config that do not depend on the model that the adapter is loaded on.
KEPT = ("base_model_name_or_path", "task_type", "module_dropout", "revision")


def load_adapter(
    model: Any, path: str | Path, adapter_name: str = "default", *, strict: bool = True, **options: Any
) -> tuple[Any, LoadReport]:
    """Load an adapter of any readable format on a model, a diffusers pipeline, or components of a pipeline.

    Names of layers are mapped to the model's modules. Rotations stay trainable. Layers that no trainable rotation can
    represent (butterflies, truncated blocks, convolutions in the legacy layout) are applied as an exact, frozen map of
    the weight. Both can be merged, unmerged and disabled. The adapter becomes active, at strength 1. Other strengths
    interpolate as the tool that wrote the file does, until ``set_scale`` names another kind.

    Args:
        model: an ``nn.Module``, a ``PeftModel``, a diffusers model or pipeline, or a mapping ``{component: module}``.
        path: a file, or a folder with ``adapter_config.json``.
        adapter_name: name of the adapter in the model.
        strict: raise an error for layers of the file that the model does not have, instead of listing them in the
            report.
        **options: facts that the file does not record, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        The model, and a report of the matched layers. diffusers models, pipelines and mappings are changed in place;
        any other module is returned inside a ``PeftModel``.

    Raises:
        AdapterFileError: the file is damaged, or does not belong to this model, which is unchanged.
        ConfigError: the name is used already, or the model has adapters of another method.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp(), "style.safetensors")
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.ones(2, 3)}, path)
        >>> unet = nn.ModuleDict({"blk": nn.ModuleDict({"lin": nn.Linear(6, 4)})})
        >>> model, report = load_adapter({"unet": unet}, path)
        >>> report.matched
        {'lora_unet_blk_lin': 'unet.blk.lin'}
    """
    return apply_adapter(model, read_once(path, **options), adapter_name, strict=strict)


def apply_adapter(
    model: Any, adapter: Adapter, adapter_name: str = "default", *, strict: bool = True
) -> tuple[Any, LoadReport]:
    """Like :func:`load_adapter`, for an adapter that is already read."""
    components = components_of(model)
    state = _with_todays_names(adapter.state, components)
    modules = {component: adaptable(part) for component, part in components.items()}
    state = split_fused(state, {part: {n: outputs_of(m) for n, m in own.items()} for part, own in modules.items()})
    for part in components.values():
        _check_name(part, adapter_name)
    host = _host_can(state, components)
    # experts are parameters, not modules: PEFT finds them
    experts = host and bool(state.config.get("target_parameters"))
    matched = _match(state, modules, strict, parameters=experts)
    report = _report(state, matched, modules)
    if experts:
        report.matched |= {name: name.removeprefix("base_model.model.") for name in report.unmatched}
        report.unmatched = []
    if host and (strict or not report.unmatched) and all(layer == name for layer, name in matched[""].items()):
        if not experts:
            fit(state, matched[""], modules[""])  # PEFT checks shapes only after it has changed the model
        model = with_file_config(model, adapter, adapter_name)
        report.frozen = [
            name for name, layer in bare(model).named_modules()
            if isinstance(layer, OFTLayer) and layer.frozen_map(adapter_name) is not None
        ]  # fmt: skip
        return model, report
    if state.other:
        report.warnings.append(f"tensors that are not rotations were skipped: {escaped(state.other)}")
    if state.other and strict and state.config.get("peft_type"):
        raise AdapterFileError(
            f"{state.source}", got=f"tensors that are not rotations: {escaped(state.other)}",
            needed="rotations only, for a model whose names differ or that is not a PeftModel",
            do="Load the adapter with PeftModel.from_pretrained, or skip these tensors with strict=False",
        )  # fmt: skip
    fits = {component: fit(state, matched[component], modules[component]) for component in components}
    for component, part in components.items():
        fitted = fits[component]
        if not matched[component]:
            continue
        names = [name for name, _ in bare(part).named_modules()]
        config = config_for(fitted, names, **{k: state.config[k] for k in KEPT if state.config.get(k)})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The block size does not divide")  # the sizes come from the file
            new = _inject(part, config, adapter_name, in_place=bool(component))
        _fill(new, fitted, adapter_name)
        kinds: list[Kind] = [held.spec.blend for held in fitted.rotations.values()]
        kinds += [held.kind for held in fitted.trained.values() if not held.needs_basis]
        report.strength = next((kind for kind in kinds if kind != "geodesic"), report.strength)
        report.frozen += [_named(component, name) for name in fitted.transforms]
        model = model if component else new
    return model, report


def _with_todays_names(state: AdapterState, components: Mapping[str, nn.Module]) -> AdapterState:
    """The adapter with the module names of the current version of a transformers model."""
    if "" not in components:
        return state
    layers = [*state.layers, *state.transforms]
    plain = {layer: layer.removeprefix("base_model.model.") for layer in layers}
    renamed = todays_names(components[""], plain.values())
    if not renamed:
        return state
    new = {layer: renamed.get(name, name) for layer, name in plain.items()}
    return replace(
        state,
        layers={new[layer]: held for layer, held in state.layers.items()},
        transforms={new[layer]: held for layer, held in state.transforms.items()},
        prefixes={new.get(layer, layer): f"base_model.model.{new.get(layer, layer)}" for layer in state.prefixes},
    )


def _match(
    state: AdapterState, modules: Mapping[str, Mapping[str, nn.Module]], strict: bool, *, parameters: bool
) -> dict[str, Any]:
    layers = [*state.layers, *state.transforms]
    raw = {layer: state.prefixes.get(layer, layer) for layer in layers}
    match = match_names(raw.values(), modules)
    if match.unmatched and (strict or not match.matched) and not parameters:
        known = [name for part in modules.values() for name in part]
        near = [n for name in match.unmatched[:3] for n in nearest(name.replace("_", "."), known, 1)]
        raise AdapterFileError(
            f"the adapter {state.source} for this model",
            got=f"{len(match.unmatched)} of {len(layers)} layers that the model does not have: "
            f"{escaped(match.unmatched)}",
            needed=f"modules of these names; the model has {escaped(near or known)}",
            do="Check the base model"
            + ("" if not match.matched else ", or skip these layers: strict=False, --partial on the command line"),
        )
    found: dict[str, Any] = {component: {} for component in modules}
    for layer in layers:
        if raw[layer] in match.matched:
            component, module = match.matched[raw[layer]]
            found[component][layer] = module
    return found


def _report(state: AdapterState, matched: Mapping[str, Any], modules: Mapping[str, Any]) -> LoadReport:
    report = LoadReport(state.format or "adapter", warnings=list(state.warnings))
    for component, names in matched.items():
        for layer, name in names.items():
            report.matched[state.prefixes.get(layer, layer)] = _named(component, name)
        if names:
            report.untouched += [_named(component, n) for n in modules[component] if n not in set(names.values())]
    layers = [state.prefixes.get(layer, layer) for layer in (*state.layers, *state.transforms)]
    report.unmatched = [name for name in layers if name not in report.matched]
    return report


def _named(component: str, name: str) -> str:
    return f"{component}.{name}" if component else name


def _check_name(model: nn.Module, adapter_name: str) -> None:
    configs = getattr(model, "peft_config", None) or {}
    if not isinstance(configs, Mapping):
        return
    if adapter_name in configs:
        raise ConfigError(
            f"adapter_name='{adapter_name}'", got="an existing adapter of that name", do="Choose another name"
        )
    kinds = {str(getattr(config.peft_type, "value", config.peft_type)) for config in configs.values()} - {"OFT"}
    if kinds:
        raise ConfigError(
            f"adapter '{adapter_name}' on a model with adapters of type {', '.join(sorted(kinds))}",
            needed="a model without adapters of other methods", do="Merge them first with merge_and_unload()",
        )  # fmt: skip


def _host_can(state: AdapterState, components: Mapping[str, nn.Module]) -> bool:
    """Whether PEFT itself loads the folder on this model; PEFT also loads biases, ``modules_to_save`` and experts."""
    if "" not in components or state.config.get("peft_type") not in (PeftType.OFT, "OFT", "ORTHOTUNE"):
        return False
    model = components[""]
    in_place = hasattr(model, "_hf_peft_config_loaded") and not isinstance(model, PeftModel)
    return state.source is not None and not (in_place and not _plain_transformers(model))


def _plain_transformers(model: nn.Module) -> bool:
    # diffusers models keep their class; transformers models get a PeftModel around them, unless they have adapters
    return hasattr(model, "get_input_embeddings") and not getattr(model, "_hf_peft_config_loaded", False)


def with_file_config(model: nn.Module, adapter: Adapter, adapter_name: str = "default") -> PeftModel:
    """Load an adapter in PEFT's layout on a model whose modules have the same names as in the file.

    PEFT creates the layers from the config of the file, including experts, biases and ``modules_to_save``; then the
    tensors are copied.

    Args:
        model: an ``nn.Module`` or a ``PeftModel``.
        adapter: an adapter with a PEFT config.
        adapter_name: name of the adapter in the model.

    Returns:
        The model with the adapter, which is active and trainable.

    Raises:
        AdapterFileError: the tensors do not fit the model.
        OrthotuneError: the config does not fit this model.
    """
    if _is_spread(model) and not isinstance(model, PeftModel):
        # The adapter needs accelerate to dispatch the model again; only PEFT's from_pretrained does that.
        folder = adapter.file.path.parent
        return PeftModel.from_pretrained(model, str(folder), adapter_name=adapter_name, is_trainable=True)
    config = _config_of_file(adapter)
    # The weights of a base on the meta device are loaded later; the adapter's tensors must be loaded now.
    meta = any(parameter.device.type == "meta" for parameter in model.parameters())
    if isinstance(model, PeftModel):
        new, meta = model, False
        new.add_adapter(adapter_name, config)
    else:
        kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(config.task_type, PeftModel)
        new = kind(model, config, adapter_name, low_cpu_mem_usage=meta)
    found = set_peft_model_state_dict(new, adapter.tensors(), adapter_name, low_cpu_mem_usage=meta)
    if missing := [key for key in found.missing_keys if "oft_" in key and adapter_name in key]:
        warnings.warn(f"Found missing adapter keys while loading the checkpoint: {missing}.", stacklevel=3)
    new.set_adapter(adapter_name)
    return new


def _is_spread(model: nn.Module) -> bool:
    """Whether accelerate offloads a part of the model to main memory or disk."""
    return bool({"cpu", "disk"} & set((getattr(model, "hf_device_map", None) or {}).values()))


def _config_of_file(adapter: Adapter) -> Any:
    config: Any = OFTConfig.from_peft_type(**deepcopy(dict(adapter.file.config or {})))
    elements = sum(math.prod(shape) for shape in adapter.file.shapes.values())
    config.load_context = replace(config.load_context, stored_numbers=elements)
    config.inference_mode = False
    if adapter.options.series is not None and config.use_cayley_neumann:
        config.neumann_series = adapter.options.series
    return config


def _inject(model: nn.Module, config: Any, adapter_name: str, *, in_place: bool) -> nn.Module:
    if isinstance(model, PeftModel):
        model.add_adapter(adapter_name, config)
        model.set_adapter(adapter_name)
    elif hasattr(model, "add_adapter") and (in_place or not _plain_transformers(model)):
        cast(Any, model).add_adapter(
            config, adapter_name=adapter_name
        )  # diffusers and transformers change the model in place
    elif in_place:
        inject_adapter_in_model(config, model, adapter_name)
    else:
        return get_peft_model(model, config, adapter_name=adapter_name)
    return model


@torch.no_grad()
def _fill(model: nn.Module, fitted: Fit, adapter_name: str) -> None:
    inner = bare(model)
    for name, held in fitted.rotations.items():
        layer = inner.get_submodule(name)
        assert isinstance(layer, OFTLayer)
        for part, rotation in layer.rotations(adapter_name).items():
            rotation.weight.copy_(held.rotations[part])
        if held.magnitude is not None:
            layer.oft_magnitude[adapter_name].weight.copy_(held.magnitude.reshape(-1))
        if held.spec.blend != "geodesic":
            layer.set_scale(adapter_name, 1.0, held.spec.blend)
    for name, transform in fitted.trained.items():
        layer = inner.get_submodule(name)
        assert isinstance(layer, OFTLayer)
        held_by = layer.rotations(adapter_name)[""]
        held_by.weight.copy_(transform.numbers)
        if transform.basis is not None:
            held_by.get_buffer("basis").copy_(transform.basis)
        if transform.magnitude is not None:
            layer.oft_magnitude[adapter_name].weight.copy_(transform.magnitude.reshape(-1))
        if not transform.needs_basis and transform.kind != "geodesic":
            layer.set_scale(adapter_name, 1.0, transform.kind)
