"""The functions of PEFT and transformers that are replaced while orthotune is registered, and their replacements.

``PeftConfigMixin.from_json_file``
    An ``adapter_config.json`` that holds no config is an error with the file's name.
``MixedModel._check_new_adapter_config``
    Refuses our configs: a mixed model would put PEFT's own OFT layers in.
``PeftModelForTokenClassification.__init__``, ``PeftModelForQuestionAnswering.__init__``
    The head that they train in full is in ``modules_to_save`` before targets are looked for, as PEFT has it for
    sequence classification: a target of that name is not rotated as well, which PEFT ends with a bare ``TypeError``.
``set_peft_model_state_dict``, as ``PeftModel.load_adapter`` calls it
    Reports no missing keys of our adapters: those of the file were checked, and PEFT takes weights of the base for an
    adapter's where names are alike, and warns.
``build_peft_weight_mapping``, as transformers' own ``load_adapter`` calls it
    Knows that a file has a magnitude without the ``.weight`` that it has in a model.
``convert_to_lora`` and ``_convert_module_to_lora`` of PEFT's conversion to LoRA, which ``save_as_lora`` calls
    Take every kind of layer that a LoRA can stand for, name the reason where one cannot, and record each layer's error.
``ContinuousMixin.generate_batch`` and ``ContinuousBatchProcessor._generation_step`` of transformers
    Take ``adapter_names``, one for each request, which they would pass over (``tuner/continuous_batching.py``).
``transformers.Trainer._load_best_model``
    Each active adapter gets its own weights of the best checkpoint, whatever it is called and whoever holds it.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial, wraps
from types import ModuleType
from typing import Any

import peft.peft_model
from peft import OFTConfig as PeftOFTConfig
from peft import PeftModel, PeftModelForQuestionAnswering, PeftModelForTokenClassification
from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners import MixedModel
from peft.tuners.lora import conversion
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, transformers_weight_conversion
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightRenaming

from orthotune.errors import AdapterFileError, ConfigError, nearest
from orthotune.files.json_file import read_json
from orthotune.tuner import continuous_batching, lora_conversion
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.targets import HEADS

NEEDED = "the JSON object of an adapter's settings, with its peft_type"
AGAIN = "Download adapter_config.json and the weights again, from the same source"

#: (class or module, name) -> the function that it had before
_originals: dict[tuple[type | ModuleType, str], Any] = {}


def replace_functions() -> None:
    """Replace functions of PEFT, and of transformers once its trainer is imported."""
    _replace(PeftConfigMixin, "from_json_file", _checking_json)
    _replace(MixedModel, "_check_new_adapter_config", _refusing_ours)
    _replace(PeftModelForTokenClassification, "__init__", partial(_saving_head, HEADS["TOKEN_CLS"]))
    _replace(PeftModelForQuestionAnswering, "__init__", partial(_saving_head, HEADS["QUESTION_ANS"]))
    _replace(peft.peft_model, "set_peft_model_state_dict", _missing_nothing)
    _replace(transformers_weight_conversion, "build_peft_weight_mapping", _naming_magnitudes)
    if hasattr(conversion, "_convert_module_to_lora"):  # for verbs that were imported before orthotune was registered
        _replace(conversion, "_convert_module_to_lora", lora_conversion.of_module)
    for owner in (conversion, peft.tuners.lora, peft.tuners, peft):
        _replace(owner, "convert_to_lora", lora_conversion.converting)
    for replaced in continuous_batching.replaced():
        _replace(*replaced)
    serve_trainer()


def serve_trainer() -> None:
    """Replace ``Trainer._load_best_model`` if transformers' trainer has been imported, which takes seconds by itself.

    Called when an adapter is added and before the first training step: by then whoever trains with it has imported it.
    """
    trainer: Any = getattr(sys.modules.get("transformers.trainer"), "Trainer", None)
    if _originals and trainer is not None:
        _replace(trainer, "_load_best_model", _loading_each_adapter)


def restore_functions() -> None:
    """Restore every replaced function."""
    for (owner, name), original in _originals.items():
        setattr(owner, name, original)
    _originals.clear()


def _replace(owner: type | ModuleType, name: str, replacement_for: Callable[[Any], Any]) -> None:
    if (owner, name) not in _originals:
        _originals[owner, name] = vars(owner)[name]
        setattr(owner, name, replacement_for(vars(owner)[name]))


def _checking_json(original: Any) -> Any:
    """PEFT's reading of a JSON file, which must be the config of an adapter where it is called so."""

    def from_json_file(cls: type[PeftConfigMixin], path_json_file: str, **kwargs: Any) -> dict[str, Any]:
        check_json(path_json_file)
        fields: dict[str, Any] = original.__get__(None, cls)(path_json_file, **kwargs)
        check_type(path_json_file, fields, PEFT_TYPE_TO_CONFIG_MAPPING.keys())
        return fields

    return classmethod(from_json_file)


def check_json(path: str | os.PathLike[str]) -> None:
    """Refuse a file that holds no JSON object.

    Raises:
        AdapterFileError: the file is not a JSON object; names the file and the position.
    """
    read_json(path, named="the adapter's config", error=AdapterFileError, needed=NEEDED, do=AGAIN)


def check_type(path: str | os.PathLike[str], fields: dict[str, Any], known: Collection[Any]) -> None:
    """Refuse the fields of an adapter folder's config that do not name a method.

    Args:
        path: the file; files of other names are not checked.
        fields: content of the file.
        known: the types that PEFT can read.

    Raises:
        AdapterFileError: the type is missing or unknown; names the file and the type.
    """
    if os.path.basename(path) != CONFIG_NAME:
        return
    kind = fields.get("peft_type")
    if isinstance(kind, str) and kind in known:
        return
    names = sorted(str(getattr(one, "value", one)) for one in known)
    near = nearest(kind.upper(), names, 1) if isinstance(kind, str) and kind else []
    raise AdapterFileError(
        f"the adapter's config {path}",
        got=f"peft_type={ascii(kind)[:80]}" if "peft_type" in fields else "no peft_type",
        needed="the type of the adapter's method, such as OFT, LORA or ORTHOTUNE",
        do=f"Did you mean {near[0]}?" if near else AGAIN,
    )


def _refusing_ours(original: Callable[..., None]) -> Callable[..., None]:
    """PEFT's check of a config for a mixed model, which can take any but ours."""

    @wraps(original)
    def _check_new_adapter_config(self: MixedModel, config: Any) -> None:
        if isinstance(config, OFTConfig):
            raise ConfigError(
                "an adapter of orthotune in a mixed model (mixed=True)",
                got="a model that uses PEFT's own OFT layers, whose results differ",
                needed="a PeftModel, which can hold several OFT adapters",
                do="Omit mixed=True; merge the other method's adapter into the base first, with merge_and_unload()",
            )
        original(self, config)

    return _check_new_adapter_config


def _saving_head(heads: Sequence[str], original: Callable[..., None]) -> Callable[..., None]:
    """A constructor of a PeftModel that names the head in ``modules_to_save`` first; PEFT does so at its end."""

    @wraps(original)
    def __init__(
        self: PeftModel, model: Any, peft_config: Any = None, adapter_name: str = "default", **kwargs: Any
    ) -> None:
        rotated = isinstance(peft_config, PeftOFTConfig)
        if rotated:
            saved = peft_config.modules_to_save or []
            peft_config.modules_to_save = [*saved, *(head for head in heads if head not in saved)]
        original(self, model, peft_config, adapter_name, **kwargs)
        if rotated:  # PEFT has added the names once more
            peft_config.modules_to_save[:] = dict.fromkeys(peft_config.modules_to_save)

    return __init__


def _missing_nothing(original: Callable[..., Any]) -> Callable[..., Any]:
    """PEFT's loading of a state dict, whose missing keys are those of the base where the adapter is one of ours."""

    @wraps(original)
    def set_peft_model_state_dict(model: Any, state: Any, adapter_name: str = "default", **kwargs: Any) -> Any:
        result = original(model, state, adapter_name=adapter_name, **kwargs)
        if isinstance(model.peft_config[adapter_name], OFTConfig):
            result.missing_keys.clear()
        return result

    return set_peft_model_state_dict


def _naming_magnitudes(original: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
    """The renamings from the keys of a file to those of a model, and one more: a magnitude in a model is a module."""

    @wraps(original)
    def build_peft_weight_mapping(
        weight_conversions: list[Any] | None, adapter_name: str, peft_config: Any = None
    ) -> list[Any]:
        found = original(weight_conversions, adapter_name, peft_config=peft_config)
        if found and isinstance(peft_config, OFTConfig):
            found.append(WeightRenaming(rf"(oft_magnitude\.{re.escape(adapter_name)})$", r"\1.weight"))
        return found

    return build_peft_weight_mapping


def _loading_each_adapter(original: Callable[[Any], None]) -> Callable[[Any], None]:
    """``Trainer._load_best_model``, where every active adapter is loaded from where the best checkpoint has it.

    The Trainer looks for an adapter at the top of a checkpoint alone, where a PeftModel saves the one called "default".
    With another name it keeps the last weights and logs a line; beside a "default" it loads the weights of that one.
    Of a model of transformers with an adapter of its own it looks for all weights, and ends with a FileNotFoundError.
    """

    @wraps(original)
    def _load_best_model(self: Any) -> None:
        model, folder = self.model, self.state.best_model_checkpoint
        inside, holds = isinstance(model, PeftModel), isinstance(model, PreTrainedModel)
        configs: dict[str, Any] = getattr(model, "peft_config", {}) if inside or holds else {}
        ours = bool(configs) and all(isinstance(config, OFTConfig) for config in configs.values())
        if not ours or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            original(self)
            return
        names = list(model.active_adapters if inside else model.active_adapters())
        if inside and names == ["default"]:
            original(self)
            return
        missing = []
        for name in names:
            own = os.path.join(folder, name) if inside and name != "default" else folder
            if not any(os.path.exists(os.path.join(own, file)) for file in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
                missing.append(f"'{name}' (in {own})")
            elif inside:
                model.load_adapter(own, name)
            else:
                peft.set_peft_model_state_dict(model, peft.load_peft_weights(own, device="cpu"), adapter_name=name)
        if missing:
            warnings.warn(
                f"load_best_model_at_end: the best checkpoint has no weights of the active adapters "
                f"{', '.join(missing)}, which keep those of the last step. Save checkpoints with the model's own "
                "save_pretrained(), or load the adapters with model.load_adapter(folder, name).",
                stacklevel=2,
            )

    return _load_best_model
