"""Orthogonal finetuning (OFT) that is exact, right on every layer, and readable by every tool.

Importing orthotune makes it serve OFT on PEFT's host: ``get_peft_model``, ``PeftModel.from_pretrained``, TRL,
transformers and diffusers then use it for every OFT config and adapter. :func:`unregister` gives OFT back to PEFT.
"""

from peft import PeftModel, get_peft_model

from orthotune.diagnosis.diagnose import diagnose
from orthotune.errors import OrthotuneError
from orthotune.loading.hotswap import hotswap_adapter
from orthotune.loading.load import load_adapter
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.model import OFTModel
from orthotune.tuner.register import register, unregister

__version__ = "0.2.0.dev0"
__all__ = [
    "OFTConfig",
    "OFTModel",
    "OrthotuneError",
    "PeftModel",
    "diagnose",
    "get_peft_model",
    "hotswap_adapter",
    "load_adapter",
    "register",
    "unregister",
]

register()
