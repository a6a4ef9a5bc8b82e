"""One cell: every contender is built, weighed and timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import device as Device
from torch import get_num_threads, nn

import orthotune
from harness import machine
from harness.cells import Cell
from harness.contenders import OTHERS, Contender, stirred
from harness.measure import measure
from harness.results import Row
from harness.saved_bytes import peak_bytes, saved_bytes
from harness.step import step_of
from harness.subject import Subject, subject
from orthotune.files.platforms import load_average


def run_cell(
    cell: Cell, contenders: list[Contender], device: Device, repetitions: int = 40, seconds: float = 120.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:  # fmt: skip
    """Measure ``contenders`` in ``cell``; the first of them is the floor.

    Args:
        cell: the shapes and the mode.
        contenders: what is measured.
        device: that the models run on.
        repetitions: see :func:`harness.measure.measure`.
        seconds: see :func:`harness.measure.measure`.
        clock: see :func:`harness.measure.measure`.

    Example:
        >>> from harness.contenders import LLAMA
        >>> run_cell(Cell(128, 4, 1), LLAMA[:1], Device("cpu"), repetitions=1)[0].median
        1.0
    """
    load = load_average()
    if any(contender.compiled for contender in contenders):
        _empty_compiler()
    frozen = subject(cell, device)
    models = {contender.name: stirred(contender, frozen, cell) for contender in contenders}
    steps = {name: step_of(frozen, model, cell.mode) for name, model in models.items()}
    timings = measure(steps, device, repetitions, seconds, settle=any(one in OTHERS for one in contenders), clock=clock)
    rows = []
    for name, model in models.items():
        timing = timings[name]
        rows.append(
            Row(
                **vars(cell),
                contender=name,
                median=round(timing.median, 4),
                p10=round(timing.p10, 4),
                p90=round(timing.p90, 4),
                repetitions=timing.repetitions,
                milliseconds=None if timing.milliseconds is None else round(timing.milliseconds, 4),
                saved_bytes=_saved(frozen, model) if cell.mode == "train" else None,
                peak_bytes=peak_bytes(steps[name], device),
                trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
                device=device.type,
                device_name=machine.device_name(device),
                threads=get_num_threads(),
                load=load,
                versions=machine.versions(),
                orthotune=orthotune.__version__,
                commit=machine.commit(),
            )
        )
    return rows


def _empty_compiler() -> None:
    """What earlier cells have compiled does not count against the limit of this one's, and a limit is never silent.

    All models share the functions whose versions are counted, and beyond the limit they would run uncompiled.
    """
    torch.compiler.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def _saved(frozen: Subject, model: nn.Module) -> int:
    return saved_bytes(lambda: frozen.call(model, frozen.x), model)
