"""A training step and an evaluation of single convolutions in every layout of a rotation, beside LoRA and no adapter.

    python benchmarks/convolutions.py --threads 2 --repetitions 25 --out benchmarks/results/convolutions-cpu.csv

The shapes are those of Stable Diffusion's levels. All methods alternate in one process around the same frozen weights,
each repetition begins with another one, and a ratio is a time divided by the frozen layer's in the same repetition. Two
clocks are read: the wall's, and the processor's time of this process, which other work on the machine disturbs less.
``kernel`` and ``patches`` are the same rotation, by a rotated kernel and by rotated patches: where the two ratios cross
is what ``orthotune.kernels.choose.patches_are_rotated`` decides by.
"""

from __future__ import annotations

import argparse
import csv
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
from peft import LoraConfig
from torch import Tensor, nn

from harness.cells import Cell
from harness.contenders import FLOOR, Contender, stirred
from harness.measure import summary
from harness.step import Step, step_of
from harness.subject import Subject
from orthotune import OFTConfig
from orthotune.layers import conv

#: channels of the input and output, and side of the image
SHAPES = ((320, 320, 64), (320, 320, 32), (640, 640, 32), (640, 640, 16), (1280, 1280, 16), (1280, 1280, 8))


@dataclass(frozen=True)
class Method:
    """A way to adapt a layer; ``patches`` forces or forbids rotated patches."""

    contender: Contender
    patches: bool | None = None


def _ours(name: str, patches: bool | None = None, **settings: object) -> Method:
    return Method(Contender(name, OFTConfig, {"use_cayley_neumann": False, **settings}, ["0"]), patches)


METHODS = (
    Method(Contender(FLOOR)),
    Method(Contender("lora", LoraConfig, {"r": 16, "lora_alpha": 16}, ["0"])),
    _ours("channels", conv="channels"),
    _ours("out", side="out"),
    _ours("kernel", patches=False),
    _ours("patches", patches=True),
)


@contextmanager
def chosen(patches: bool | None) -> Iterator[None]:
    """Patches are rotated, or kernels are, whatever would be chosen."""
    if patches is None:
        yield
    else:
        with patch.object(conv, "patches_are_rotated", lambda *_: patches):
            yield


def layer(inputs: int, outputs: int, side: int, batch: int, dtype: str, train: bool) -> Subject:
    """A frozen 3 x 3 convolution and its input; the same at every call."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1)).to(getattr(torch, dtype)).requires_grad_(False)
    x = torch.randn(batch, inputs, side, side).to(getattr(torch, dtype)).requires_grad_(train)

    def call(model: nn.Module, x: Tensor) -> Tensor:
        found: Tensor = model(x)
        return found

    return Subject(model, x, call)


def timed(steps: dict[str, tuple[Step, bool | None]], repetitions: int) -> dict[str, tuple[list[float], list[float]]]:
    """Name -> seconds by the wall's clock and by the processor's, of one step in each repetition."""
    names = list(steps)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    gc.disable()
    for number in range(-2, repetitions):  # two to warm up
        gc.collect()
        for name in names[number % len(names) :] + names[: number % len(names)]:
            step, patches = steps[name]
            if step.before is not None:
                step.before()
            with chosen(patches):
                wall, own = time.perf_counter(), time.process_time()
                step.run()
                found = time.perf_counter() - wall, time.process_time() - own
            for kept, seconds in zip(times[name], found if number >= 0 else (), strict=False):
                kept.append(seconds)
    gc.enable()
    return times


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--side", type=int, nargs="*", help="Only images of these sides.")
    parser.add_argument("--out", type=Path, help="A CSV file.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for inputs, outputs, side in [shape for shape in SHAPES if not given.side or shape[2] in given.side]:
        for dtype in given.dtype:
            for mode in ("train", "eval"):
                cell = replace(Cell(), mode=mode, dtype=dtype)  # type: ignore[arg-type]
                subject = layer(inputs, outputs, side, given.batch, dtype, mode == "train")
                models = {one.contender.name: stirred(one.contender, subject, cell) for one in METHODS}
                steps = {}
                for one in METHODS:
                    with chosen(one.patches):
                        steps[one.contender.name] = step_of(subject, models[one.contender.name], cell.mode), one.patches
                times = timed(steps, given.repetitions)
                print(f"\n{inputs} -> {outputs}, {side} x {side}, batch {given.batch}, {dtype}, {mode}", flush=True)
                for name, (wall, own) in times.items():
                    by_wall, by_processor = summary(wall, times[FLOOR][0]), summary(own, times[FLOOR][1])
                    words = [f"{t.median:.3f} ({t.p10:.3f}-{t.p90:.3f})" for t in (by_wall, by_processor)]
                    print(f"  {name:10} {words[0]}   processor {words[1]}", flush=True)
                    rows.append({
                        "inputs": inputs, "outputs": outputs, "side": side, "batch": given.batch, "dtype": dtype,
                        "mode": mode, "method": name, "threads": given.threads, "repetitions": given.repetitions,
                        "median": by_wall.median, "p10": by_wall.p10, "p90": by_wall.p90,
                        "processor_median": by_processor.median, "processor_p10": by_processor.p10,
                        "processor_p90": by_processor.p90,
                    })  # fmt: skip
    if given.out:
        with given.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
