"""Corrections of PEFT's base tuner: names, shared modules, and deleting, disabling and enabling adapters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, _check_adapters_not_merged
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn

from orthotune.errors import TargetError
from orthotune.layers.base import OFTLayer
from orthotune.layers.beside_adapters import beside_adapters
from orthotune.layers.settings import LayerSettings
from orthotune.tuner.adapter_tensors import AdapterKey, check_state, own_state, placed, refuse_frozen
from orthotune.tuner.config import OFTConfig, settings_by_names, settle_order
from orthotune.tuner.merging import MergingTuner
from orthotune.tuner.old_files import is_old_key, translated_state
from orthotune.tuner.places import Places, part_untied, twins
from orthotune.tuner.targets import PEFTS_OWN, is_target, warn_unmatched_keys
from orthotune.tuner.vocabulary import SavedState


class HostedTuner(MergingTuner):
    """A tuner of :class:`OFTLayer` s on PEFT's base tuner."""

    #: where modules are, while some of them are replaced
    _places: Places | None = None
    #: parameter by id, with its ``requires_grad``, while adapters are switched off
    _trainable_before: dict[int, tuple[nn.Parameter, bool]] | None = None

    # Putting adapters in.

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter; other parameters keep their ``requires_grad``."""
        with _trainable_as_before(model), self._placed_in(model), warnings.catch_warnings():
            for message in PEFTS_OWN:
                warnings.filterwarnings("ignore", message=message)
            self._join_twins(model, adapter_name)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        config = self.peft_config[adapter_name]
        warn_unmatched_keys(config, adapter_name, model)
        settle_order(config, adapter_name, model)

    def _join_twins(self, model: nn.Module, adapter_name: str) -> None:
        """Apply a target ``shared`` to the embeddings that share its weight, unless they are targets themselves."""
        config, found = self.peft_config[adapter_name], twins(model)
        if found is None or self._places is None:
            return
        table, others = found
        name = next(key for key, module in model.named_modules() if module is table)
        if not self._check_target_module_exists(config, name):
            return
        free = [(key, one) for key, one in others if not self._check_target_module_exists(config, key)]
        if len(free) < len(others):  # the user has chosen some of them
            return
        if adapted := [key for key, module in free if isinstance(module, OFTLayer)]:
            raise TargetError(
                f"target '{name}' of adapter '{adapter_name}'",
                got=f"adapters at '{adapted[0]}', which shares its weight, and none at '{name}' itself",
                needed="one name for the embedding in all adapters of a model",
                do=f"Name {', '.join(repr(key) for key, _ in free)} in target_modules",
            )
        self._places.join(table, [module for _, module in free])

    @contextmanager
    def _placed_in(self, model: nn.Module) -> Iterator[None]:
        """Look up once where the modules of ``model`` are, while they are replaced."""
        before = self._places
        self._places = Places(model)
        try:
            yield
        finally:
            self._places = before

    def _names(self, key: str) -> list[str]:
        """All names of a module; an adapted module has the names of its base layer."""
        return (self._places or Places(self.model)).names(key)

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:
        return is_target(peft_config, self._names(key))

    def _settings(self, config: Any, key: str) -> LayerSettings:
        return settings_by_names(config, self._names(key))

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # Layers place their own parameters, and merge into the base module that is put back.
        for owner, name in (self._places or Places(self.model)).owners(child):
            if owner is not new_module:
                setattr(owner, name, new_module)
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, merge: bool = True, **kwargs: Any) -> nn.Module:
        with self._placed_in(self.model):
            unloaded = super()._unload_and_optionally_merge(merge=merge, **kwargs)
            if merge:
                part_untied(unloaded)
        return unloaded

    # Switching.

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; if it was the only active one, another adapter becomes active in every layer.

        The other adapter is trainable according to its config, with its ``modules_to_save``. All other adapters are
        unchanged.
        """
        if adapter_name not in self.peft_config:
            raise ValueError(f"Adapter {adapter_name} does not exist")
        _check_adapters_not_merged(self.model, adapter_name)
        active = [name for name in self.active_adapters if name != adapter_name]
        was_active = adapter_name in self.active_adapters
        with _trainable_as_before(self.model):
            layers = [module for module in self.model.modules() if isinstance(module, OFTLayer)]
            with warnings.catch_warnings():  # each layer names a successor of its own
                warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
                for layer in layers:
                    layer.delete_adapter(adapter_name)
            wrappers: list[Any] = [m for m in self.model.modules() if isinstance(m, AuxiliaryTrainingWrapper)]
            for module in wrappers:
                held = [name for name in active if name in module._adapters]
                module.delete_adapter(adapter_name, new_active_adapters=held or None)
        del self.peft_config[adapter_name]
        left = sorted(self.peft_config)
        if was_active and not active and left:
            warnings.warn(
                f"Adapter {adapter_name} was active which is now deleted. Setting active adapter to {left[0]}.",
                stacklevel=2,
            )
            self.set_adapter(left[0], inference_mode=self.peft_config[left[0]].inference_mode)
            active = [left[0]]
        elif was_active and active:
            with _trainable_as_before(self.model):
                self.set_adapter(active)
        if was_active:
            self.active_adapter: str | list[str] = active

    def disable_adapter_layers(self) -> None:
        """Disable every adapter; :meth:`enable_adapter_layers` restores ``requires_grad``."""
        if self._trainable_before is None:
            self._trainable_before = _trainable(self.model)
        super().disable_adapter_layers()

    def enable_adapter_layers(self) -> None:
        """Enable the active adapters again; frozen ones stay frozen."""
        super().enable_adapter_layers()
        for parameter, flag in (self._trainable_before or {}).values():
            parameter.requires_grad_(flag)
        self._trainable_before = None

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate one or several adapters; they are trainable unless ``inference_mode``."""
        super().set_adapter(adapter_name, inference_mode=inference_mode)
        if self._trainable_before is not None:  # switched off at the moment: this is what is found again
            self._trainable_before = _trainable(self.model)

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Set whether adapters are trainable; also while adapters are disabled."""
        super().set_requires_grad(adapter_names, requires_grad)
        kept = self._trainable_before or {}
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            for parameter in _held(self.model, name):
                if id(parameter) in kept:
                    kept[id(parameter)] = (parameter, requires_grad)

    # Files.

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.stored if isinstance(key, AdapterKey) else key

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        refuse_frozen(model, adapter_name)
        own = own_state(model, adapter_name, state_dict, unwanted_adapter_names)
        biases = cls._get_learnable_bias_state_dict(model, state_dict, config)
        return SavedState({**own, **biases}, model, config, state_dict)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        old = config.load_context.old_fields if isinstance(config, OFTConfig) else None
        # Only the tensors of the old file itself: the adapter is saved in the present layout.
        if old is not None and any(map(is_old_key, state_dict)):
            state_dict = translated_state(model, old, adapter_name, state_dict)
        renamed = placed(model, adapter_name, state_dict)
        check_state(model, adapter_name, renamed)
        return renamed


def _held(model: nn.Module, adapter_name: str) -> Iterator[nn.Parameter]:
    for _, module in beside_adapters(model):
        if isinstance(module, OFTLayer):
            yield from module.stored(adapter_name)
        elif isinstance(module, ModulesToSaveWrapper) and adapter_name in module.modules_to_save:
            yield from module.modules_to_save[adapter_name].parameters()


def _trainable(model: nn.Module) -> dict[int, tuple[nn.Parameter, bool]]:
    return {id(parameter): (parameter, parameter.requires_grad) for parameter in model.parameters()}


@contextmanager
def _trainable_as_before(model: nn.Module) -> Iterator[None]:
    """Restore ``requires_grad`` of an adapted model's parameters afterwards; a first adapter freezes its model."""
    adapted = any(isinstance(module, BaseTunerLayer) for _, module in beside_adapters(model))
    before = _trainable(model) if adapted else {}
    yield
    for parameter, flag in before.values():
        if parameter.requires_grad != flag:
            parameter.requires_grad_(flag)
