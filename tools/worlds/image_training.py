"""The training loop for all parts of the image world: cosine learning rate, averaged weights, stop and resume.

The loss depends only on the number of the step, so that an interrupted run can be resumed exactly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from orthotune.files.atomic import atomic_write


class OutOfTime(Exception):
    """The time limit was reached; the checkpoint contains the progress."""


@dataclass(frozen=True)
class Plan:
    """The schedule: the learning rate rises over ``warmup`` steps and falls to zero along a cosine.

    The result is the exponential moving average with decay ``average``; ``deadline`` is a value of
    ``time.monotonic()``.
    """

    steps: int
    peak: float
    average: float = 0.999
    warmup: int = 100
    keep_every: int = 200
    deadline: float = math.inf


def train(module: nn.Module, loss_at: Callable[[int], Tensor], plan: Plan, checkpoint: Path) -> None:
    """Train ``module`` in place, from ``checkpoint`` if it exists.

    Raises:
        OutOfTime: the deadline passed; the checkpoint was written, and the next call continues from it.
    """
    weights = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan.peak, fused=True)
    mean = [p.detach().clone() for p in weights]
    first, minutes_before = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        mean, first, minutes_before = state["mean"], state["step"], state["minutes"]
    module.train()
    began = time.monotonic()

    def keep(step: int) -> None:
        state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "mean": mean}
        with atomic_write(checkpoint) as partial:
            torch.save(state | {"step": step, "minutes": minutes_before + (time.monotonic() - began) / 60}, partial)

    recent: list[float] = []
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, plan)
        loss = loss_at(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # A lower decay in the first steps, so that the untrained weights do not stay in the average.
        factor = min(plan.average, (step + 1) / (step + 10))
        torch._foreach_lerp_(mean, [p.detach() for p in weights], 1 - factor)
        recent.append(loss.item())
        done, late = step + 1, time.monotonic() > plan.deadline
        if done % plan.keep_every == 0 or done == plan.steps or late:
            minutes = minutes_before + (time.monotonic() - began) / 60
            share = sum(recent) / len(recent)
            print(f"{checkpoint.stem} {done}/{plan.steps}  loss {share:.4f}  {minutes:.1f} min", flush=True)
            recent.clear()
            keep(done)
        if late and done < plan.steps:
            raise OutOfTime(f"{checkpoint.stem}: {done} of {plan.steps} steps")
    with torch.no_grad():
        for weight, value in zip(weights, mean, strict=True):
            weight.copy_(value)
    module.eval()


def _rate(step: int, plan: Plan) -> float:
    if step < plan.warmup:
        return plan.peak * (step + 1) / plan.warmup
    done = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return plan.peak * 0.5 * (1 + math.cos(math.pi * done))
