"""Names of quantizations: applied to a base model on loading, or stored in its checkpoint."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from orthotune.errors import RecipeError

#: name -> (module that quantizes, extra that installs the module): quantized on loading
WHILE_LOADING: dict[str, tuple[str, str]] = {
    "nf4": ("bitsandbytes", "quant-bnb"),
    "fp4": ("bitsandbytes", "quant-bnb"),
    "int8": ("bitsandbytes", "quant-bnb"),
    "torchao-int8": ("torchao", "quant-torchao"),
    "quanto-int8": ("optimum.quanto", "quant-quanto"),
    "quanto-int4": ("optimum.quanto", "quant-quanto"),
    "quanto-int2": ("optimum.quanto", "quant-quanto"),
    "quanto-float8": ("optimum.quanto", "quant-quanto"),
}
#: name -> (module that reads the checkpoint, extra that installs the module): already quantized
STORED: dict[str, tuple[str, str]] = {
    "gptq": ("gptqmodel", "quant-gptq"),
    "awq": ("gptqmodel", "quant-awq"),
    "aqlm": ("aqlm", "quant-aqlm"),
}


def check_quantization(word: str) -> None:
    """Refuse a name that no quantization has, and one whose library is not installed.

    Args:
        word: a key of :data:`WHILE_LOADING` or :data:`STORED`.

    Raises:
        RecipeError: the word is unknown, or its library is not installed.
    """
    known = WHILE_LOADING | STORED
    if word not in known:
        raise RecipeError(f"quantization={word}", needed=f"one of {', '.join(known)}")
    module, extra = known[word]
    if not _installed(module):
        raise RecipeError(
            f"quantization={word}",
            got=f"{module} is not installed",
            do=f"Install it with: pip install 'orthotune[{extra}]'",
        )


def loading_options(word: str, source: str, dtype: torch.dtype, processes: int = 1) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a base with the quantization ``word``.

    Args:
        word: a key of :data:`WHILE_LOADING` or :data:`STORED`.
        source: path or hub name of the model.
        dtype: of the computation, and of what is not quantized.
        processes: how many processes share the run; several need a storage that can be sharded.

    Raises:
        RecipeError: an unknown name, a library that is not installed, or a checkpoint with another quantization.
    """
    check_quantization(word)
    stored = _stored_as(source)
    if word in STORED:
        if stored != word:
            raise RecipeError(
                f"quantization={word} with model={source}",
                got=f"a checkpoint stored with {stored}" if stored else "a checkpoint that is not quantized",
                needed=f"one that was quantized with {word} before",
                do=f"Name such a checkpoint, omit quantization, or quantize on loading: {', '.join(WHILE_LOADING)}",
            )
        return _stored_options(word)
    if stored:
        raise RecipeError(
            f"quantization={word} with model={source}",
            got=f"a checkpoint stored with {stored}",
            do="Omit quantization: the checkpoint records its own quantization",
        )
    return {"quantization_config": _config(word, dtype, processes), "device_map": {"": place()}}


def place() -> Any:
    """Where an entire model goes: the accelerator of this process, or the CPU."""
    return torch.accelerator.current_device_index() if torch.accelerator.is_available() else "cpu"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent of it is missing
        return False


def _config(word: str, dtype: torch.dtype, processes: int) -> Any:
    import transformers

    if word in ("nf4", "fp4"):
        # As QLoRA: the scales are quantized, too.
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=word,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            # FSDP2 shards floating types only; the bytes are the same.
            bnb_4bit_quant_storage=dtype if processes > 1 else torch.uint8,
        )
    if word == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    library, _, weights = word.partition("-")
    if library == "quanto":
        return transformers.QuantoConfig(weights=weights)
    from torchao.quantization import Int8WeightOnlyConfig

    return transformers.TorchAoConfig(Int8WeightOnlyConfig())


def _stored_as(source: str) -> str | None:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError):
        return None  # loading the model reports the fault
    found = getattr(config, "quantization_config", None)
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(method, "value", method)) if method else None


def _stored_options(word: str) -> dict[str, Any]:
    if word == "gptq" and not torch.accelerator.is_available():
        from transformers import GPTQConfig

        # The kernel that is chosen otherwise rewrites the weight in its first evaluation. Bits come from the file.
        return {"quantization_config": GPTQConfig(bits=4, backend="gptq_torch"), "device_map": {"": "cpu"}}
    return {"device_map": {"": place()}}
