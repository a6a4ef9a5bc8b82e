"""Times of contenders that alternate in one process, as ratios to the floor of the same repetition."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch

from harness.step import Step

#: a shorter step is repeated within one timing: the clock and the scheduler disturb it too much
SHORTEST = 0.02
WARM_UP, FEWEST = 2, 5


@dataclass(frozen=True)
class Timing:
    """How long a contender takes, in units of the floor.

    Args:
        median, p10, p90: of the ratio to the floor of the same repetition.
        repetitions: how many ratios.
        milliseconds: median time of one step; None on a CPU, where absolute times say little.
    """

    median: float
    p10: float
    p90: float
    repetitions: int
    milliseconds: float | None = None


def measure(
    steps: dict[str, Step],
    device: torch.device,
    repetitions: int = 40,
    seconds: float = 120.0,
    settle: bool = False,
    clock: Callable[[], float] | None = None,
) -> dict[str, Timing]:
    """Time ``steps``; the first of them is the floor.

    Every repetition times every contender once, beginning with another one each time, so that drift of the machine
    and what a neighbour leaves in the caches fall on all alike.

    Args:
        steps: name -> what is timed.
        device: that the steps run on.
        repetitions: wanted.
        seconds: after which no further repetition starts, once there are five.
        settle: run each contender once, untimed, right before it is timed: for neighbours that take so much memory that
            the next one pays for it.
        clock: seconds; ``time.process_time`` of one thread does not see what else the machine does. None:
            ``time.perf_counter``.

    Example:
        >>> measure({"floor": Step(lambda: None)}, torch.device("cpu"), repetitions=5)["floor"].median
        1.0
    """
    for _ in range(WARM_UP):
        for step in steps.values():
            step()
    clock = clock or time.perf_counter
    names = list(steps)
    calls = max(1, math.ceil(SHORTEST / max(_time(steps[names[0]], 1, device, clock), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    was_on = gc.isenabled()
    gc.disable()  # collections would hit whoever allocates next
    try:
        for turn in range(repetitions):
            if turn >= FEWEST and time.perf_counter() - began > seconds:
                break
            gc.collect()
            first = turn % len(names)
            for name in names[first:] + names[:first]:
                if settle:
                    steps[name]()
                times[name].append(_time(steps[name], calls, device, clock))
    finally:
        if was_on:
            gc.enable()
    return {name: summary(times[name], times[names[0]], device.type == "cuda") for name in names}


def summary(times: list[float], floor: list[float], absolute: bool = False) -> Timing:
    """Median and 10th and 90th percentile of ``times / floor``, repetition by repetition; seconds in.

    Example:
        >>> summary([2.0, 4.0], [1.0, 2.0])
        Timing(median=2.0, p10=2.0, p90=2.0, repetitions=2, milliseconds=None)
    """
    ratios = [a / b for a, b in zip(times, floor, strict=True)]
    tenths = quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else ratios * 9
    return Timing(median(ratios), tenths[0], tenths[-1], len(ratios), median(times) * 1e3 if absolute else None)


def _time(step: Step, calls: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of one call, over ``calls`` of them; what comes before a call is left out."""
    if step.before is None:
        return _elapsed(step.run, calls, device, clock) / calls
    total = 0.0
    for _ in range(calls):
        step.before()
        total += _elapsed(step.run, 1, device, clock)
    return total / calls


def _elapsed(run: Callable[[], None], times: int, device: torch.device, clock: Callable[[], float]) -> float:
    synchronize(device)
    start = clock()
    for _ in range(times):
        run()
    synchronize(device)
    return clock() - start


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
