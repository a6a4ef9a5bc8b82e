"""Accelerate's ``Accelerator``: precision, processes and trackers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from orthotune.errors import RecipeError
from orthotune.image.loop.options import LoopOptions, Precision
from orthotune.image.loop.trackers import check_trackers


def make_accelerator(options: LoopOptions, home: Path | None = None) -> Any:
    """An ``accelerate.Accelerator`` for ``options``; DDP, FSDP and DeepSpeed as ``accelerate launch`` says.

    Raises:
        RecipeError: a precision or a tracker that this machine does not have.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    check_precision(options.mixed_precision)
    # Accelerate keeps one state per process: what an earlier run in it, of a language model or with another precision,
    # left there would count for this one.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(
        # Said aloud: without it several processes on CPUs would each take themselves for the only one.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation,
        log_with=check_trackers(options.trackers) or None,
        project_dir=None if home is None else str(home),
    )


def check_precision(precision: Precision) -> None:
    """Raise a ``RecipeError`` for half precision where nothing computes it."""
    if precision == "fp16" and not torch.accelerator.is_available():
        raise RecipeError("mixed_precision=fp16", got="no accelerator", do="Leave mixed_precision=no, or use bf16")


def storage_dtype(precision: Precision) -> torch.dtype:
    """The dtype in which frozen weights are kept."""
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def start_trackers(accelerator: Any, names: Sequence[str], settings: dict[str, Any]) -> None:
    """Open the trackers, with the settings that they can show."""
    if names:
        shown = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
        accelerator.init_trackers("orthotune", config=shown)
