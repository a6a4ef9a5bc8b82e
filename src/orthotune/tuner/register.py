"""Register the tuner in PEFT's tables; no other file changes them.

Functions of PEFT and transformers are replaced as well, by ``host_functions.py``. :func:`unregister` restores all.
"""

from __future__ import annotations

from typing import Any

from peft.mapping import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PEFT_TYPE_TO_PREFIX_MAPPING,
    PEFT_TYPE_TO_TUNER_MAPPING,
)
from peft.utils import PeftType

from orthotune.formats.peft.beyond_stock import ORTHOTUNE_TYPE
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.host_functions import replace_functions, restore_functions
from orthotune.tuner.model import OFTModel

#: table -> what PEFT has in it for OFT
_pefts_own: list[tuple[dict[Any, Any], Any]] = []


class Prefix(str):
    """The prefix of the names of adapter parameters; ``name in prefix`` is False for every adapter name.

    PEFT asks whether an adapter's name is contained in its method's prefix, and warns that the weights "may be
    reinitialized": it finds an adapter's keys by what they look like. Ours are found by the adapted layers
    (``adapter_tensors.py``), so that the warning about adapters called ``oft``, ``f`` or ``t`` would be false.
    """

    def __contains__(self, adapter_name: object, /) -> bool:
        return False


def register() -> None:
    """Let orthotune handle PEFT's OFT configs and adapter files. Further calls have no effect.

    Example:
        >>> register()
        >>> PEFT_TYPE_TO_TUNER_MAPPING[PeftType.OFT] is OFTModel
        True
    """
    if _pefts_own:
        return
    for table, ours in (
        (PEFT_TYPE_TO_CONFIG_MAPPING, OFTConfig),
        (PEFT_TYPE_TO_TUNER_MAPPING, OFTModel),
        (PEFT_TYPE_TO_PREFIX_MAPPING, Prefix(OFTModel.prefix)),
    ):
        _pefts_own.append((table, table[PeftType.OFT]))
        table[PeftType.OFT] = ours
    configs: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    configs[ORTHOTUNE_TYPE] = OFTConfig
    replace_functions()


def unregister() -> None:
    """Restore PEFT's own OFT tuner; models that are already adapted keep working."""
    for table, pefts_own in _pefts_own:
        table[PeftType.OFT] = pefts_own
    _pefts_own.clear()
    configs: dict[Any, Any] = PEFT_TYPE_TO_CONFIG_MAPPING
    configs.pop(ORTHOTUNE_TYPE, None)
    restore_functions()
