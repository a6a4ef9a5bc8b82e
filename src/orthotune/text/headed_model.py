"""Models with a head of their own: loaded from any base, adapted with the new modules trained in full, and measured."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer

from orthotune import get_peft_model
from orthotune.errors import RecipeError
from orthotune.operations.headed_base import write_base_config
from orthotune.quantized.loading_options import loading_options
from orthotune.runs import processes
from orthotune.text.causal_model import no_model, without_dropout
from orthotune.tuner.targets import HEADS

#: Ends of the names of heads, as PEFT knows them for tasks of classification.
HEAD_NAMES = HEADS["SEQ_CLS"]


def read_config(source: str) -> Any:
    """The config of a model.

    Args:
        source: path or hub name.

    Raises:
        RecipeError: no such model, or it has code of its own, which is never run.

    Example:
        >>> read_config("bert-base-uncased").model_type  # doctest: +SKIP
        'bert'
    """
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise no_model(source, fault) from fault


def load_headed(
    kind: Any, source: str, dtype: torch.dtype, config: Any, seed: int, quantization: str | None = None
) -> tuple[Any, list[str]]:
    """A model with its head, without dropout, and the modules that its base has no weights for.

    Args:
        kind: the class that loads, as ``AutoModelForSequenceClassification``.
        source: path or hub name of the base.
        dtype: of the model.
        config: of the model, with the labels.
        seed: of the modules that are new.
        quantization: a word of ``quantized/loading_options.py``.

    Returns:
        the model, and the names of its new modules, which no frozen base gives back: they have to be trained.

    Raises:
        RecipeError: no such model, or the class does not know its architecture.
    """
    options = loading_options(quantization, source, dtype, processes.count()) if quantization else {}
    torch.manual_seed(seed)
    try:
        with _no_report_of_new_modules():
            model, found = kind.from_pretrained(
                source, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True,
                ignore_mismatched_sizes=True, **options,
            )  # fmt: skip
    except (OSError, ValueError, SafetensorError) as fault:
        raise no_model(source, fault) from fault
    without_dropout(model)
    mismatched = [key if isinstance(key, str) else key[0] for key in found.get("mismatched_keys") or ()]
    return model, new_modules([*(found.get("missing_keys") or ()), *mismatched])


def new_modules(keys: Iterable[str]) -> list[str]:
    """The modules of parameters that a base has no weights for, a head as one module.

    Args:
        keys: names of the parameters.

    Example:
        >>> new_modules(["classifier.dense.weight", "classifier.out_proj.bias", "bert.pooler.dense.weight"])
        ['bert.pooler.dense', 'classifier']
    """
    found = set()
    for key in keys:
        parts = key.split(".")[:-1]
        head = next((number for number, part in enumerate(parts, 1) if part in HEAD_NAMES), len(parts))
        found.add(".".join(parts[:head]))
    return sorted(found - {""})


def adapted(model: Any, adapter: Any, trained_in_full: Sequence[str] = ()) -> Any:
    """The model with an adapter, beside which its head and new modules are trained in full and saved.

    Args:
        model: as loaded.
        adapter: config of the adapter; None leaves the model as it is.
        trained_in_full: names of new modules.
    """
    if adapter is None:
        return model
    own = [name for name, _ in model.named_children() if name in HEAD_NAMES]
    known = HEADS.get(str(adapter.task_type), ())  # PEFT itself trains these
    names = [name for name in (*(adapter.modules_to_save or []), *own, *trained_in_full) if name not in known]
    adapter.modules_to_save = list(dict.fromkeys(names)) or None
    return get_peft_model(model, adapter)


def load_text_tokenizer(source: str) -> Any:
    """The tokenizer in ``source``, which may be one of an encoder; its end token pads where it has no other.

    Args:
        source: path or hub name.

    Raises:
        RecipeError: no tokenizer there, or none that can pad.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise no_model(source, fault) from fault
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise RecipeError(f"tokenizer of {source}", got="no token to pad with", needed="pad_token or eos_token")
    return tokenizer


def most_tokens(tokenizer: Any, config: Any, asked: int) -> int:
    """How many tokens of a text a model takes: as many as asked, and no more than it has positions for.

    Args:
        tokenizer: of the model.
        config: of the model.
        asked: the setting ``max_length``.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    positions = getattr(text, "max_position_embeddings", None) or asked
    return int(min(asked, tokenizer.model_max_length, positions))


@torch.no_grad()
def outputs_of(
    model: nn.Module, rows: Sequence[Any], collate: Callable[[list[Any]], dict[str, Any]], batch: int
) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Each batch of rows and the outputs of the model for it, in evaluation mode; the mode is put back.

    Args:
        model: that is measured.
        rows: what ``collate`` takes.
        collate: makes a batch of tensors.
        batch: rows per batch.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for start in range(0, len(rows), batch):
            inputs = {key: value.to(device) for key, value in collate(list(rows[start : start + batch])).items()}
            yield inputs, model(**inputs)
    finally:
        model.train(was_training)


def save_with_config(trainer: Any, folder: Path, state: dict[str, Any] | None) -> None:
    """Write what was trained, its tokenizer or processor, and the model's config, which names the labels of the head.

    ``AutoConfig.from_pretrained(FOLDER/base)`` gives the config with which the base is loaded before the adapter.

    Args:
        trainer: of the finished run.
        folder: that is written to.
        state: parameters that were gathered from several processes; None takes those of the model.
    """
    trainer.model.save_pretrained(folder, state_dict=state)
    trainer.processing_class.save_pretrained(folder)
    if hasattr(trainer.model, "get_base_model"):
        write_base_config(trainer.model.get_base_model(), folder)


@contextmanager
def _no_report_of_new_modules() -> Iterator[None]:
    """transformers warns that the head is new, which is why it is trained."""
    loggers = [logging.getLogger(f"transformers.{name}") for name in ("modeling_utils", "distributed.tensor_parallel")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
