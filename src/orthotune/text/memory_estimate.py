"""Estimate the memory of training a language model from its config alone: no weight is read, nothing is computed.

Weights, gradients and optimizer states are counted. Activations are the tensors that autograd keeps of a forward of the
layers with tensors that have shapes and no data. The head is counted as TRL computes it: in tiles of rows, which are
not kept; of older versions, and of losses that need them, the logits.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftConfig
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer import utils as trl_utils

from orthotune.errors import RecipeError
from orthotune.files.installed_worlds import model_folder
from orthotune.runs.memory_estimate import MemoryEstimate, rotations_of_any_value, saved_bytes, without_data
from orthotune.text.causal_model import no_model, without_dropout
from orthotune.tuner.published_configs import get_peft_model

#: Bytes of an optimizer for a parameter, by the beginning of its name; Adafactor: less than a moment. Others, and none
#: named: two moments in float32.
OPTIMIZER_BYTES = {"adafactor": 4, "lion_8bit": 1, "paged_lion_8bit": 1, "lion": 4, "paged_lion": 4, "sgd": 0,
                   "adamw_8bit": 2, "adamw_bnb_8bit": 2, "paged_adamw_8bit": 2, "muon": 8}  # fmt: skip
USUAL = 8


def empty_model(source: str, dtype: torch.dtype) -> Any:
    """A causal language model as its config describes it, on the meta device: with shapes and without numbers.

    Args:
        source: path, hub name or word.
        dtype: of the weights.

    Raises:
        RecipeError: no such model, or it has code of its own, which is never run.

    Example:
        >>> next(empty_model("text-world", torch.float32).parameters()).device.type
        'meta'
    """
    source = model_folder(source)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError) as fault:
        raise no_model(source, fault) from fault
    without_dropout(model)
    return model


def adapted(model: Any, adapter: PeftConfig | None) -> Any:
    """An empty model with its adapter, ready to be counted; with every parameter trained where there is none.

    Args:
        model: from :func:`empty_model`.
        adapter: config of the adapter.
    """
    return model if adapter is None else get_peft_model(model, adapter, low_cpu_mem_usage=True)


def measure_memory(
    model: Any, rows: int, length: int, *, optim: str | None = None, checkpointing: bool = False,
    autocast: torch.dtype | None = None, logits: float = 0,
) -> MemoryEstimate:  # fmt: skip
    """Bytes of training an empty model, on rows of equal length.

    Args:
        model: from :func:`adapted`; not changed.
        rows: sequences whose activations are kept at the same time.
        length: tokens of each.
        optim: the optimizer, as transformers names it; None for AdamW.
        checkpointing: of gradients: the inputs of the blocks are kept alone.
        autocast: the dtype of a mixed precision; None for none.
        logits: positions of each row whose logits the loss keeps in float32; one that is kept twice counts twice.

    Raises:
        RecipeError: nothing is trained.
    """
    parameters = list(model.parameters())
    learning = [parameter for parameter in parameters if parameter.requires_grad]
    if not learning:
        raise RecipeError("the estimate of memory", got="a model without a trained parameter", needed="an adapter")
    # Adapters are float32 whatever the dtype of their model.
    count = sum(parameter.numel() for parameter in learning)
    known = {id(parameter) for parameter in learning}
    held = {id(t): t for t in (*parameters, *model.buffers()) if id(t) not in known}
    return MemoryEstimate(
        frozen=sum(t.nbytes for t in held.values()),
        trained=4 * count,
        gradients=4 * count,
        optimizer=OPTIMIZER_BYTES.get((optim or "").removesuffix("_torch"), USUAL) * count,
        average=0,
        activations=_activations(model, rows, length, checkpointing, autocast, logits),
    )


def _activations(
    model: Any, rows: int, length: int, checkpointing: bool, autocast: torch.dtype | None, logits: float
) -> int | None:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    empty: Any = copy.deepcopy(model, without_data([model], mode)).train()
    base = empty.get_base_model() if hasattr(empty, "get_base_model") else empty
    with mode, torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
        rotations_of_any_value(empty)
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": False})
        body: nn.Module = base.base_model
        ids = torch.zeros(rows, length, dtype=torch.long)
        kept = saved_bytes(
            [*empty.parameters(), *empty.buffers()], lambda: body(input_ids=ids, use_cache=False).last_hidden_state
        )
    return None if kept is None else kept + _head(base, rows, length, logits)


def _head(base: Any, rows: int, length: int, logits: float) -> int:
    """Bytes of the head: its input, and the logits that are kept: by the loss, or by versions of TRL without tiles."""
    config = base.config.get_text_config()
    if not logits and not hasattr(trl_utils, "add_fused_lm_head"):
        logits = 2 * length
    return rows * length * int(config.hidden_size) * 4 + int(rows * logits) * int(config.vocab_size) * 4
