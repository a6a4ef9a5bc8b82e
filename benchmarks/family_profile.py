"""Where a step of a transform spends its time: calls of torch and their share, beside blocks in the same process.

    python benchmarks/family_profile.py butterfly planes --mode train

By torch's profiler, one thread, the first cell of ``orthotune bench targets`` in float32. The frozen model's calls are
in every column; what a transform adds is the difference. The numbers of calls are exact; the times are those of a clock
and mean something on a quiet machine alone.
"""

from __future__ import annotations

import argparse
import gc
from dataclasses import replace

import torch
from torch.profiler import ProfilerActivity, profile

from family_speed import sized
from harness.cells import BASE, DECODE
from harness.contenders import stirred
from harness.step import Step, step_of
from harness.subject import subject

#: what the calls of a step are, by the start of their names
GROUPS = {
    "products": ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm", "aten::_fused"),
    "inverses": ("aten::linalg", "aten::lu", "aten::triangular"),
    "copies": ("aten::copy_", "aten::clone", "aten::cat", "aten::index", "aten::gather", "aten::stack", "aten::fill_"),
}


def consumed(step: Step, steps: int) -> dict[str, tuple[float, float]]:
    """Milliseconds of the processor and calls of a step, by group."""
    for _ in range(3):
        step()
    gc.collect()
    found: dict[str, tuple[float, float]] = {}
    for _ in range(steps):
        if step.before is not None:
            step.before()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            step.run()
        for event in seen.key_averages():
            group = next((name for name, starts in GROUPS.items() if event.key.startswith(starts)), "the rest")
            ms, calls = found.get(group, (0.0, 0.0))
            found[group] = ms + event.self_cpu_time_total / 1000 / steps, calls + event.count / steps
    return found


def main() -> None:
    """Print a table for each mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transforms", nargs="*", default=["butterfly", "planes"])
    parser.add_argument("--mode", choices=["train", "decode"], default="train")
    parser.add_argument("--steps", type=int, default=10)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cell = replace(BASE if asked.mode == "train" else DECODE, dtype="float32")
    frozen = subject(cell, torch.device("cpu"))
    rows = {}
    for one in sized(cell):
        if one.name in ("frozen", "blocks", *asked.transforms):
            model = frozen.model if one.name == "frozen" else stirred(one, frozen, cell)
            rows[one.name] = consumed(step_of(frozen, model, cell.mode), asked.steps)
    groups = [*GROUPS, "the rest"]
    print(f"| {asked.mode} | " + " | ".join(f"{group}, ms (calls)" for group in groups) + " |")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join("{:.2f} ({:.0f})".format(*row.get(group, (0, 0))) for group in groups) + " |")


if __name__ == "__main__":
    main()
