"""The ``Accelerator`` of accelerate: precision, processes and trackers of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from orthotune.errors import RecipeError
from orthotune.image.loop.options import LoopOptions, Precision
from orthotune.image.loop.trackers import check_trackers


def make_accelerator(options: LoopOptions, project_dir: Path | None = None) -> Any:
    """An ``accelerate.Accelerator`` for ``options``; DDP, FSDP and DeepSpeed as configured by ``accelerate launch``.

    Args:
        options: of the loop.
        project_dir: folder for the files of trackers.

    Raises:
        RecipeError: this machine does not support the precision or a tracker.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    check_precision(options.mixed_precision)
    # Accelerate has one state per process. Without a reset, this run would use the precision and the settings of an
    # earlier run in the process.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Accelerator(
        # Explicit, because otherwise each of several CPU processes believes that it is the only one.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=options.mixed_precision,
        gradient_accumulation_steps=options.gradient_accumulation,
        log_with=check_trackers(options.trackers) or None,
        project_dir=None if project_dir is None else str(project_dir),
    )


def check_precision(precision: Precision) -> None:
    """Check that the device supports a precision.

    Raises:
        RecipeError: fp16 without an accelerator.
    """
    if precision == "fp16" and not torch.accelerator.is_available():
        raise RecipeError("mixed_precision=fp16", got="no accelerator", do="Leave mixed_precision=no, or use bf16")


def storage_dtype(precision: Precision) -> torch.dtype:
    """The dtype of frozen weights."""
    return {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]


def start_trackers(accelerator: Any, names: Sequence[str], settings: dict[str, Any]) -> None:
    """Start the trackers.

    Args:
        accelerator: of accelerate.
        names: of the trackers.
        settings: of the run; only numbers, text and truth values are passed on.
    """
    if names:
        shown = {key: value for key, value in settings.items() if isinstance(value, bool | int | float | str)}
        accelerator.init_trackers("orthotune", config=shown)
