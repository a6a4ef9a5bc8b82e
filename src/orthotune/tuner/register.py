"""The only file that touches PEFT's tables and functions: our tuner serves OFT while orthotune is imported.

Two functions of PEFT are replaced as well: its reading of ``adapter_config.json``, so that what is wrong with it is
worded, and the check of a mixed model. :func:`unregister` puts all of it back.
"""

from __future__ import annotations

from typing import Any

from peft.config import PeftConfigMixin
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners import MixedModel
from peft.utils import PeftType

from orthotune.errors import ConfigError
from orthotune.formats.beyond_stock import ORTHOTUNE_TYPE
from orthotune.tuner.adapter_folder import check_json, check_type
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.model import OFTModel

_replaced: dict[str, Any] = {}


def register() -> None:
    """Serve OFT configs and adapter files with orthotune. Doing it twice is doing it once.

    Example:
        >>> register()
        >>> PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] is OFTModel
        True
    """
    if _replaced:
        return
    _replaced.update(config=PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.OFT], tuner=PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT])
    configs: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    configs[PeftType.OFT] = configs[ORTHOTUNE_TYPE] = OFTConfig
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] = OFTModel
    for owner, name, new in (
        (PeftConfigMixin, "from_json_file", classmethod(_from_json_file)),
        (MixedModel, "_check_new_adapter_config", _check_new_adapter_config),
    ):
        _replaced[name] = vars(owner)[name]
        setattr(owner, name, new)


def _from_json_file(cls: type[PeftConfigMixin], path_json_file: str, **kwargs: Any) -> dict[str, Any]:
    """PEFT's own reading, of a file that is the config of an adapter."""
    check_json(path_json_file)
    fields: dict[str, Any] = _replaced["from_json_file"].__get__(None, cls)(path_json_file, **kwargs)
    check_type(path_json_file, fields, PEFT_TYPE_TO_CONFIG_MAPPING.keys())
    return fields


def _check_new_adapter_config(self: MixedModel, config: Any) -> None:
    """PEFT's own check; a mixed model would put PEFT's own OFT layers in for a config of ours."""
    if isinstance(config, OFTConfig):
        raise ConfigError(
            "an adapter of orthotune in a mixed model (mixed=True)",
            got="a model that puts in PEFT's own OFT layers, which compute something else",
            needed="a model of OFT adapters, which can hold several of them",
            do="Leave mixed out; merge the other method's adapter into the base first, with merge_and_unload()",
        )
    _replaced["_check_new_adapter_config"](self, config)


def unregister() -> None:
    """Give ``PeftType.OFT`` back to PEFT's own tuner; models that are already adapted keep working."""
    if not _replaced:
        return
    configs: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    configs[PeftType.OFT] = _replaced.pop("config")
    configs.pop(ORTHOTUNE_TYPE, None)
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] = _replaced.pop("tuner")
    for owner, name in ((PeftConfigMixin, "from_json_file"), (MixedModel, "_check_new_adapter_config")):
        setattr(owner, name, _replaced.pop(name))
