"""Measure and plot the memory of a process over 2,000 training steps and over 200 loads and deletions of an adapter.

    python benchmarks/long_run.py --out docs/images/long-run.png

The first tenth of a run, and at least ten steps, are not evaluated: one-time allocations (thread pools, caches of
libraries, optimizer state) happen there. After that, the number of live tensors, their bytes and open files must not
change, allocations of Python may grow by 100 kB, and resident memory by 5 percent. Each load and deletion of an adapter
may add 1,500 bytes: safetensors 0.8.0 leaks about 57 bytes per tensor that it reads, and a cycle reads 21 on average.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

PYTHON_SLACK, RESIDENT_SLACK, GRANTED = 100_000, 0.05, 1_500
#: fewest steps or cycles at the beginning that are not evaluated
WARM = 10


def judged(name: str, found: Sequence[Any], granted: int = 0) -> bool:
    """Print the change of each measure after the warm-up; returns whether all are within their bounds."""
    last = found[-1]
    warm = next(one for one in found if one.at >= min(last.at, max(WARM, last.at // 10)))
    flat = (warm.tensors, warm.tensor_bytes, warm.files) == (last.tensors, last.tensor_bytes, last.files)
    grown = last.python_bytes - warm.python_bytes
    resident = last.resident / warm.resident - 1
    print(
        f"{name}: from {warm.at} to {last.at}: tensors {warm.tensors} to {last.tensors}, "
        f"{warm.tensor_bytes} to {last.tensor_bytes} bytes; files {warm.files} to {last.files}; "
        f"Python {grown:+d} bytes; resident {warm.resident / 2**20:.1f} to {last.resident / 2**20:.1f} MiB",
        flush=True,
    )
    return flat and grown < PYTHON_SLACK + granted * (last.at - warm.at) and resident < RESIDENT_SLACK


def draw(rows: dict[str, Sequence[Any]], path: Path) -> None:
    """Plot memory in one panel per run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, found) in zip(figure.subplots(1, len(rows)), rows.items(), strict=True):
        at = [one.at for one in found]
        axes.plot(at, [one.resident / 2**20 for one in found], color="#1b7837", label="resident, MiB")
        axes.set_ylim(0, 1.25 * max(one.resident for one in found) / 2**20)
        axes.set_xlabel(name)
        axes.set_ylabel("MiB")
        beside = axes.twinx()
        beside.plot(at, [one.tensors for one in found], color="#762a83", linestyle="--", label="live tensors")
        beside.set_ylim(0, 1.6 * max(one.tensors for one in found))  # apart from the other line
        lines = [*axes.get_lines(), *beside.get_lines()]
        axes.legend(lines, [line.get_label() for line in lines], frameon=False, loc="lower right", fontsize=9)
        axes.spines["top"].set_visible(False)
        axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--lives", type=int, default=200)
    parser.add_argument("--out", type=Path, help="a PNG; the numbers go into a CSV of the same name")
    chosen = parser.parse_args()
    import torch

    from tests.support.long_runs import lives, training, watched

    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    rows = {"training steps": watched(training(), chosen.steps, max(1, chosen.steps // 50), trace=True)}
    good = judged("training steps", rows["training steps"])
    with tempfile.TemporaryDirectory() as folder:
        life = lives(Path(folder))
        rows["load, merge, unmerge, delete"] = watched(life, chosen.lives, max(1, chosen.lives // 50), trace=True)
    good &= judged("lives of an adapter", rows["load, merge, unmerge, delete"], GRANTED)
    if chosen.out:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        draw(rows, chosen.out)
        with chosen.out.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["run", *asdict(next(iter(rows.values()))[0])])
            for name, found in rows.items():
                for one in found:
                    table.writerow([name, *asdict(one).values()])
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
