"""What spreads a training over processes: DDP, FSDP2 or DeepSpeed's ZeRO, as arguments of transformers' trainer."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import Trainer, TrainingArguments

from orthotune.errors import RecipeError
from orthotune.runs.processes import Distributed


def arguments_for(word: Distributed) -> dict[str, Any]:
    """Arguments of the trainer beside those that every run has.

    Raises:
        RecipeError: DeepSpeed is asked for and not installed.

    Example:
        >>> arguments_for("ddp")
        {}
    """
    if word == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "reshard_after_forward": True}}
    if word in ("zero2", "zero3"):
        if find_spec("deepspeed") is None:
            raise RecipeError(f"distributed={word}", got="no deepspeed", do="Install it: pip install deepspeed")
        # Neither of DeepSpeed's 16-bit modes: they store every parameter in 16 bits, rotations too. The base is loaded
        # in 16 bits by itself, and stays so.
        auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
        stage = {"stage": int(word[-1])}
        config = {"zero_optimization": stage, "zero_allow_untested_optimizer": True, **dict.fromkeys(auto, "auto")}
        return {"deepspeed": config, "bf16": False}
    return {}


def configure(arguments: TrainingArguments, word: Distributed, *, full: bool) -> TrainingArguments:
    """Set what the trainer's arguments have no field for; to be called before the trainer is made."""
    if word != "fsdp2":
        return arguments
    if not full:
        # The base is stored in the dtype that it computes in; accelerate's default would round rotations to it, too.
        arguments.fsdp_plugin_args["mixed_precision_policy"] = MixedPrecisionPolicy()
    state = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        # accelerate only enables FSDP with an accelerator, although torch can also shard on a CPU.
        state.distributed_type = DistributedType.MULTI_GPU
    return arguments


def check_started(trainer: Trainer, word: Distributed) -> None:
    """Refuse to train in another way than was asked for.

    Raises:
        RecipeError: the installed libraries did not enable the engine ``word``.
    """
    found = {
        "fsdp2": trainer.is_fsdp_enabled and trainer.accelerator.is_fsdp2,
        "zero2": trainer.is_deepspeed_enabled,
        "zero3": trainer.is_deepspeed_enabled,
    }
    if not found.get(word, True) or (word in ("none", "ddp") and any(found.values())):
        raise RecipeError(
            f"distributed={word}",
            got=f"a trainer for {trainer.accelerator.distributed_type}",
            do="Look at the installed versions of accelerate and transformers, and at the launcher's configuration",
        )
