"""The only file that touches PEFT's tables: our tuner serves ``PeftType.OFT`` while orthotune is imported."""

from __future__ import annotations

from typing import Any

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType

from orthotune.formats.beyond_stock import ORTHOTUNE_TYPE
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


def unregister() -> None:
    """Give ``PeftType.OFT`` back to PEFT's own tuner; models that are already adapted keep working."""
    if not _replaced:
        return
    configs: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    configs[PeftType.OFT] = _replaced.pop("config")
    configs.pop(ORTHOTUNE_TYPE, None)
    PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] = _replaced.pop("tuner")
