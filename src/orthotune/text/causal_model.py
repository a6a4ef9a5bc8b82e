"""Load a causal language model and its tokenizer for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from orthotune.errors import RecipeError
from orthotune.files.installed_worlds import model_folder
from orthotune.quantized.loading_options import loading_options
from orthotune.runs import processes


def choose_dtype(name: str) -> torch.dtype:
    """The dtype called ``name``; ``auto`` is bfloat16 on a GPU that has it and float32 elsewhere."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return dtypes[name]


def load_model(
    source: str, dtype: torch.dtype, quantization: str | None = None, kind: Any = AutoModelForCausalLM, **fields: Any
) -> Any:
    """The model in ``source`` (path, hub name or word), in ``dtype`` whatever it is stored in, without dropout.

    Dropout is off so that a loss means the same in training and in measuring, and runs can be repeated.
    ``quantization`` is a word of ``quantized/loading_options.py``; what is not quantized is in ``dtype``. ``kind`` is
    another class of transformers to load, and ``fields`` are those of its config, as ``num_labels``.

    Raises:
        RecipeError: no such model, it has code of its own, which is never run, or it cannot be quantized so.
    """
    source = model_folder(source)
    options = loading_options(quantization, source, dtype, processes.count()) if quantization else {}
    try:
        model = kind.from_pretrained(source, dtype=dtype, trust_remote_code=False, **options, **fields)
    except (OSError, ValueError, SafetensorError) as fault:
        raise no_model(source, fault) from fault
    without_dropout(model)
    return model


def load_tokenizer(source: str) -> Any:
    """The tokenizer in ``source``; padding is done with its end token when it names none.

    Raises:
        RecipeError: no tokenizer there, or one without an end token.
    """
    source = model_folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise no_model(source, fault) from fault
    if tokenizer.eos_token is None:
        raise RecipeError(f"tokenizer of {source}", got="no end token", needed="eos_token, to close each text with")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def without_dropout(model: nn.Module) -> None:
    """Set every dropout probability in ``model`` to zero, in modules and in attention settings."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def no_model(source: str, fault: Exception) -> RecipeError:
    """The error for a model that cannot be loaded.

    Args:
        source: path or hub name.
        fault: what transformers raised.
    """
    here = Path(source).exists()
    return RecipeError(
        f"model={source}",
        got=str(fault).strip().splitlines()[0] if here else "no such directory, and the hub does not give it",
        needed="a directory as written by save_pretrained, or a hub name",
        do="Check the path" if here or source.startswith((".", "/", "~")) else "Check the name and the network",
    )
