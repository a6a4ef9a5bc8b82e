"""What a machine cannot do is said before anything is loaded."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from orthotune.errors import RecipeError
from orthotune.image.loop.accelerator import check_precision, make_accelerator, storage_dtype
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.trackers import check_trackers


def test_an_unknown_tracker() -> None:
    with pytest.raises(RecipeError, match=r"'mlflow'. Found: no such tracker. Needed: one of tensorboard, wandb"):
        check_trackers(["mlflow"])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is here")
def test_a_tracker_that_is_not_installed() -> None:
    with pytest.raises(RecipeError, match="trackers: wandb. Found: not installed. pip install wandb"):
        make_accelerator(LoopOptions(0.1, steps=1, trackers=("wandb",)))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_half_precision_needs_an_accelerator() -> None:
    with pytest.raises(RecipeError, match="mixed_precision=fp16. Found: no accelerator"):
        check_precision("fp16")
    assert storage_dtype("bf16") == torch.bfloat16
