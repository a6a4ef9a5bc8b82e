"""Checkpoints of the loop: trained parameters, optimizer and average in safetensors, written atomically."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as states
from torch.optim import Optimizer

from orthotune.files.json_file import read_json, write_json
from orthotune.files.safetensors_file import write_tensors
from orthotune.image.loop.average import Average
from orthotune.layers.parametrization.magnitude import present_name
from orthotune.runs.checkpoint_folder import new_checkpoint
from orthotune.runs.directory import step_of

TRAINED, OPTIMIZER, AVERAGE = "trained.safetensors", "optimizer.safetensors", "average.safetensors"
STATE = "loop.json"
# Separates the name of a parameter, which has dots, from the name of its optimizer state.
_BAR = "|"


@dataclass
class Progress:
    """The progress of a run: number of steps, and how many were skipped for a non-finite loss or gradient."""

    step: int = 0
    skipped: int = 0


@dataclass
class Parts:
    """The parts of a checkpoint: model and optimizer, wrapped or not.

    ``scaler`` is the gradient scaler of torch for half precision, or None.
    """

    model: nn.Module
    optimizer: Optimizer
    average: Average | None = None
    scaler: Any = None


def write_checkpoint(
    folder: Path, parts: Parts, progress: Progress, keep: int, writes: bool = True, *, keep_every: int | None = None,
    add: Callable[[Path], None] | None = None,
) -> None:  # fmt: skip
    """Write ``checkpoint-STEP`` into ``folder`` and remove all but the newest ``keep``.

    All processes of a sharded model must call this function.

    Args:
        folder: of the checkpoints.
        parts: the content.
        progress: gives the step.
        keep: number of checkpoints to keep.
        writes: whether this process writes; False for all but the main process.
        keep_every: checkpoints at multiples of so many steps stay, too.
        add: writes further files into the checkpoint.
    """
    full = states.StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    # The values in these dictionaries have no useful type in torch.
    trained: Any = states.get_model_state_dict(parts.model, options=full)
    kept: Any = states.get_optimizer_state_dict(parts.model, parts.optimizer, options=full).get("state", {})
    sums = {name: _unsharded(value) for name, value in parts.average.sums.items()} if parts.average else {}
    if not writes:
        return
    moments = {f"{name}{_BAR}{key}": value for name, values in kept.items() for key, value in values.items()}
    tensors = {key: value for key, value in moments.items() if isinstance(value, Tensor)}
    files: dict[str, Any] = {TRAINED: trained, OPTIMIZER: tensors, AVERAGE: sums}
    with new_checkpoint(folder, progress.step, keep, keep_every) as partial:
        for name, content in files.items():
            write_tensors(partial / name, content)
        state = {
            "skipped": progress.skipped,
            "average_steps": parts.average.steps if parts.average else 0,
            "optimizer": {key: value for key, value in moments.items() if key not in tensors},
            "groups": [_plain(group) for group in parts.optimizer.param_groups],
            "scaler": parts.scaler.state_dict() if parts.scaler else {},
        }
        write_json(partial / STATE, state)
        if add is not None:
            add(partial)


@torch.no_grad()
def read_checkpoint(checkpoint: Path, parts: Parts) -> Progress:
    """Load a checkpoint into ``parts`` and return the progress of the run.

    Args:
        checkpoint: the folder of the checkpoint.
        parts: model, optimizer, average and scaler, updated in place.
    """
    full = states.StateDictOptions(full_state_dict=True, ignore_frozen_params=True, strict=False)
    state = read_json(checkpoint / STATE)
    kept: dict[str, dict[str, Any]] = {}
    for key, value in {**load_file(checkpoint / OPTIMIZER), **state["optimizer"]}.items():
        name, _, part = key.partition(_BAR)
        kept.setdefault(present_name(name), {})[part] = value
    if kept:
        # A fresh optimizer makes a step at the rate 0 here, to have the states that are filled then. Schedule-free ones
        # refuse steps in their other state; their own switch would look as if there were states already.
        for group in parts.optimizer.param_groups:
            if "train_mode" in group:
                group["train_mode"] = True
        now: Any = states.get_optimizer_state_dict(parts.model, parts.optimizer, options=full)
        now["state"] = kept
        states.set_optimizer_state_dict(parts.model, parts.optimizer, now, options=full)
    trained: Any = {present_name(name): value for name, value in load_file(checkpoint / TRAINED).items()}
    states.set_model_state_dict(parts.model, trained, options=full)
    for group, saved in zip(parts.optimizer.param_groups, state.get("groups", ()), strict=False):
        group.update({key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()})
    if parts.average is not None:
        parts.average.steps = state["average_steps"]
        for name, value in load_file(checkpoint / AVERAGE).items():
            _fill(parts.average.sums[present_name(name)], value)
    if parts.scaler is not None and state["scaler"]:
        parts.scaler.load_state_dict(state["scaler"])
    return Progress(step_of(checkpoint), state["skipped"])


def _unsharded(value: Tensor) -> Tensor:
    """The full tensor of a tensor that may be sharded over processes."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """The numbers that an optimizer keeps in a group of parameters, such as the rate that it has estimated."""
    kept = {key: value for key, value in group.items() if key not in ("params", "lr")}
    return {
        key: value
        for key, value in kept.items()
        if isinstance(value, (int, str, list, tuple)) or (isinstance(value, float) and math.isfinite(value))
    }


def _fill(total: Tensor, value: Tensor) -> None:
    if hasattr(total, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = total
        value = distribute_tensor(value.to(total.device), sharded.device_mesh, sharded.placements)
    total.copy_(value)
