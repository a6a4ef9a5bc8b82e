"""The tuner: finds the targets of an adapter and replaces them by adapted layers."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import _ExcludedModule
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from orthotune.layers.base import OFTLayer
from orthotune.layers.beside_adapters import beside_adapters
from orthotune.layers.experts import ParamWrapper
from orthotune.layers.parametrization.family_group import group_family
from orthotune.layers.parametrization.group import group
from orthotune.layers.parametrization.one_call import one_call
from orthotune.layers.registry import check_holds, kind_of
from orthotune.layers.settings import LayerSettings
from orthotune.layers.shared_input import share_inputs
from orthotune.quantized.gradient import attach
from orthotune.quantized.registry import library_of
from orthotune.rotation.strength import Kind
from orthotune.tuner.admission import admit_adapter, refuse_oversized
from orthotune.tuner.combination import add_weighted_adapter
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.first_step import GradientCheck
from orthotune.tuner.host_functions import serve_trainer
from orthotune.tuner.hosting import HostedTuner
from orthotune.tuner.mixed_batch import handed_down
from orthotune.tuner.old_files import use_todays_names
from orthotune.tuner.places import adapted_layers, is_called, plain_name
from orthotune.tuner.strength import set_scale
from orthotune.tuner.targets import (
    TRANSFORMERS_TARGETS,
    default_targets,
    include_all_linear,
    no_match,
    warn_unmatched,
)


class OFTModel(HostedTuner):
    """A model whose target layers are rotated. Made by ``get_peft_model``, or directly.

    Args:
        model: any ``nn.Module``; its layers are replaced in place.
        peft_config: an :class:`OFTConfig`, ours or PEFT's, or a dictionary of them by adapter name.
        adapter_name: name of the adapter.
        low_cpu_mem_usage: create the parameters on the meta device, for loading.

    Raises:
        TargetError, BlockSizeError, UnsupportedLayerError, ConfigError: before any layer is touched.

    Example:
        >>> model = OFTModel(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]), "default")
        >>> model.model[0].oft_R["default"].weight.shape
        torch.Size([2, 6])
    """

    prefix: str = "oft_"
    tuner_layer_cls = OFTLayer
    target_module_mapping = TRANSFORMERS_TARGETS
    _gradient_checks: tuple[GradientCheck, ...] = ()

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter; nothing is replaced when a target cannot be adapted."""
        config = OFTConfig.from_peft(self.peft_config[adapter_name])
        self.peft_config[adapter_name] = config
        admit_adapter(config, adapter_name, model)
        use_todays_names(config, model)
        include_all_linear(config, model)
        if kwargs.get("state_dict") is None:
            with self._placed_in(model):
                self._check_targets(model, config)
        with warnings.catch_warnings():
            # PEFT warns that tied weights break on merging; here a merge unties them (layers/merging.py).
            warnings.filterwarnings("ignore", message=".*no implementation exists to tie the adapters.*")
            try:
                super().inject_adapter(model, adapter_name, *args, **kwargs)
            except NoMatchingPeftModuleError as error:
                raise no_match(config.target_modules, config.target_parameters, model, str(error)) from None
        modules = [module for _, module in beside_adapters(model)]
        layers = [module for module in modules if isinstance(module, OFTLayer)]
        rotations = [rotation for layer in layers for rotation in layer.rotations(adapter_name).values()]
        group(rotations)
        group_family(rotations)
        share_inputs(model, adapter_name)
        self._report_resized(adapter_name)
        for module in modules:
            library = None if isinstance(module, OFTLayer) else library_of(module)
            if library:  # also without an adapter: the gradient passes through the layer
                attach(module, library)
        serve_trainer()
        if not self.peft_config[adapter_name].inference_mode:
            self._gradient_checks = (*self._gradient_checks, GradientCheck(model, [model, self]))

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        unloaded = super()._unload_and_optionally_merge(merge=merge, **kwargs)
        for check in self._gradient_checks:
            check.stop()
        self._gradient_checks = ()
        return unloaded

    def _prepare_adapter_config(self, peft_config: OFTConfig, model_config: dict[str, Any]) -> OFTConfig:
        if peft_config.target_modules is None and not peft_config.target_parameters:
            peft_config.target_modules = default_targets(model_config, self.model)
        elif peft_config.target_modules is None:
            peft_config.target_modules = []
        return peft_config

    def _check_targets(self, model: nn.Module, config: OFTConfig) -> None:
        """Try every target on the meta device, so that an error leaves the model as it was."""
        self._prepare_adapter_config(config, self.get_model_config(model))
        include_all_linear(config, model)
        inside = tuple(key + "." for key, module in beside_adapters(model) if isinstance(module, OFTLayer))
        matched, tried = [], []
        for key, module in beside_adapters(model):
            found = self._check_target_module_exists(config, key) if key else False
            if isinstance(found, _ExcludedModule):
                matched += self._names(key)  # exists but is excluded; its truth value is False
            if not found or key.startswith(inside):
                continue
            matched += self._names(key)
            base = module.get_base_layer() if isinstance(module, OFTLayer) else module
            with torch.device("meta"):
                kind, settings = kind_of(base, key), self._settings(config, key)
                check_holds(kind, settings)
                tried.append(kind(base, "check", settings))
        for key, _ in model.named_parameters() if config.target_parameters else ():
            key = plain_name(key)
            owner, _, name = key.rpartition(".")
            if any(is_called(key, target) for target in config.target_parameters or []):
                holder = model.get_submodule(owner)
                holder = holder.get_base_layer() if isinstance(holder, OFTLayer) else holder
                settings = self._settings(config, key)
                with torch.device("meta"):
                    tried.append(ParamWrapper(holder, "check", settings, name, config.fan_in_fan_out))
        refuse_oversized(config, tried)
        if matched:
            warn_unmatched(config.target_modules, matched, model)

    def _create_and_replace(
        self,
        oft_config: OFTConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        settings = self._settings(oft_config, current_key)
        if isinstance(target, OFTLayer) and not (parameter_name and self._wraps_another(target, parameter_name)):
            check_holds(type(target), settings)
            target.update_layer(adapter_name, settings)
            new = target
        elif isinstance(parent, OFTLayer):
            return  # part of an attention that is adapted as one layer
        else:
            new = self._create_new_module(oft_config, adapter_name, target, settings, parameter_name)
            if adapter_name not in self.active_adapters:
                new.requires_grad_(False)
            self._replace_module(parent, target_name, new, target)
            self._keep_off_fast_path(new, current_key)
        if new.beyond_peft:
            beyond = {*(oft_config.needs_orthotune_for or []), new.beyond_peft}
            oft_config.needs_orthotune_for = sorted(beyond)

    @staticmethod
    def _wraps_another(target: OFTLayer, parameter_name: str) -> bool:
        return isinstance(target, ParamWrapper) and target.parameter_name != parameter_name

    @staticmethod
    def _create_new_module(
        oft_config: OFTConfig, adapter_name: str, target: nn.Module, settings: LayerSettings, parameter_name: str | None
    ) -> OFTLayer:
        if parameter_name is not None:
            return ParamWrapper(target, adapter_name, settings, parameter_name, oft_config.fan_in_fan_out)
        return kind_of(target, settings.layer)(target, adapter_name, settings)

    def _keep_off_fast_path(self, new: OFTLayer, key: str) -> None:
        """PyTorch's encoder layers read ``linear1.weight`` past a wrapper in evaluation, unless a hook is there."""
        parts = key.split(".")
        above = [self.model.get_submodule(".".join(parts[:i])) for i in range(len(parts))]
        if any(isinstance(module, nn.TransformerEncoderLayer) for module in above):
            new.register_forward_pre_hook(_nothing)
        for module in above:
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False

    def _report_resized(self, adapter_name: str) -> None:
        layers = {
            layer.oft_settings[adapter_name].layer: layer.resized[adapter_name]
            for _, layer in adapted_layers(self.model, adapter_name)
            if adapter_name in layer.resized
        }
        # In an old file the tensors have the sizes.
        if layers and self.peft_config[adapter_name].load_context.old_fields is None:
            listed = "; ".join(f"{name}: {change}" for name, change in layers.items())
            warnings.warn(
                f"The block size does not divide {len(layers)} layers, which use the nearest divisor: {listed}. "
                'Set block_size_pattern for them, or block_size_fallback="error" to make this an error.',
                stacklevel=2,
            )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Parameters are float32 from the start; ``autocast_adapter_dtype=False`` asks for the base's dtype."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for _, layer in adapted_layers(self.model, adapter_name) if not autocast_adapter_dtype else ():
            if layer.base_parameters():
                dtype = next(iter(layer.base_parameters().values())).dtype
                for rotation in layer.rotations(adapter_name).values():
                    rotation.to(dtype)
                if adapter_name in layer.oft_magnitude:
                    layer.oft_magnitude[adapter_name].to(dtype)

    def set_scale(self, adapter: str, scale: float, kind: Kind | None = None) -> None:
        """Set the strength of an adapter, see :func:`orthotune.tuner.strength.set_scale`."""
        set_scale(self.model, adapter, scale, kind)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's ``convert_to_lora`` takes an adapter; for a name that the model lacks, its active adapters.

        Args:
            adapter_name: the adapter. ``PeftModel.supports_lora_conversion`` passes none.
        """
        names = [adapter_name] if adapter_name in self.peft_config else self.active_adapters
        layers = [layer for layer in self.modules() if isinstance(layer, OFTLayer)]
        return all(layer.supports_lora_conversion(name) for layer in layers for name in names)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Around every call of the model and every generation, by PEFT's host: ``adapter_names`` reach the layers.

        On a GPU the rotations of a call are computed together (``parametrization/one_call.py``).
        """
        names = kwargs.get("adapter_names")
        handed = nullcontext() if names is None else handed_down(self, names, kwargs.get("num_beams"))
        with handed, one_call():
            yield

    def add_weighted_adapter(self, adapters: list[str], weights: list[float], *args: Any, **kwargs: Any) -> str:
        """Add an adapter made of others, see :func:`orthotune.tuner.combination.add_weighted_adapter`."""
        return add_weighted_adapter(self, adapters, weights, *args, **kwargs)


def _nothing(*_: Any) -> None:
    """A hook whose presence is its only effect."""
