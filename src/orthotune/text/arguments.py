"""The arguments of a trainer with which runs are repeatable and stay on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

#: Schedules that have another name in transformers.
SCHEDULES = {"constant": "constant_with_warmup"}
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def run_arguments(
    kind: type[Arguments],
    checkpoints: Path,
    *,
    schedule: str,
    bf16: bool,
    trackers: Sequence[str] = (),
    **options: Any,
) -> Arguments:
    """Arguments of the class ``kind``: nothing is pushed anywhere, and each step is logged.

    With one log line per step, the loss written after a resume does not depend on where the run was cut.

    Args:
        kind: the class that the trainer takes, as ``trl.DPOConfig``.
        checkpoints: the folder of the run's checkpoints.
        schedule: ``cosine``, ``linear``, ``constant`` or another one of transformers, after the warmup.
        bf16: compute in bfloat16.
        trackers: that each step is reported to, besides the log of the run.
        **options: further fields of ``kind``.

    Example:
        >>> run_arguments(TrainingArguments, Path("runs/a"), schedule="linear", bf16=False, max_steps=5).report_to
        []
    """
    return kind(
        output_dir=str(checkpoints),
        lr_scheduler_type=SCHEDULES.get(schedule, schedule),
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        report_to=list(trackers) or "none",
        push_to_hub=False,
        save_strategy="steps",
        eval_strategy="no",
        logging_strategy="steps",
        logging_steps=1,
        disable_tqdm=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
        **options,
    )
