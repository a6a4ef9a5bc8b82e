"""The model of a GPU's cost on the processor at hand, beside what is measured there: how far it is off.

    python benchmarks/cost_model.py --threads 2 --repetitions 15 --out benchmarks/results/cost-model-cpu.csv
    python benchmarks/cost_model.py --threads 2 --measured TABLE.csv  # of orthotune bench, on the same processor

The roofline of ``orthotune bench --predict`` (``harness/predict.py``) knows a device by four numbers. Here they are
measured first: a copy for the bandwidth, a large product in the model's dtype, a batch of small float32 products, and
the least that an operation takes. Then each cell of a selection is predicted from shapes and these numbers, and
measured, in one process. Nothing is fitted to the measured ratios.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from harness.cells import selection
from harness.contenders import FUSED, Contender
from harness.machine import device_name
from harness.predict import Gpu, predicted_ratio
from harness.results import Row, read_rows
from harness.run import run_cell
from orthotune.files.tables import write_table

NAMES = ("frozen", "lora", "lora_fused", "orthotune")


def fastest(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter, times: int = 15) -> float:
    """Seconds of a call: the median of the quicker half, after two to warm up.

    Example:
        >>> fastest(lambda: None) >= 0
        True
    """
    found = []
    for number in range(-2, times):
        began = clock()
        run()
        if number >= 0:
            found.append(clock() - began)
    return median(sorted(found)[: (times + 1) // 2])


def measured_device(dtype: str, large: int = 2048, clock: Callable[[], float] = time.perf_counter) -> Gpu:
    """The processor at hand by the four numbers of the model.

    Args:
        dtype: of the large product, by its name in torch.
        large: rows and columns of the large product, the square root of an eighth of the numbers that are copied.
        clock: seconds.

    Example:
        >>> measured_device("float32", 64).bandwidth > 0
        True
    """
    a, b = (torch.randn(large, large).to(getattr(torch, dtype)) for _ in range(2))
    source, target = torch.randn(large, 8 * large), torch.empty(large, 8 * large)
    blocks, one = torch.randn(large // 4, 32, 32), torch.ones(1)
    return Gpu(
        name=device_name(torch.device("cpu")),
        bandwidth=2 * 4 * source.numel() / fastest(lambda: target.copy_(source), clock),
        products=2 * large**3 / fastest(lambda: a @ b, clock),
        float32=2 * blocks.numel() * 32 / fastest(lambda: torch.bmm(blocks, blocks), clock),
        source="measured",
        launch=fastest(lambda: [one.add_(1) for _ in range(1000)], clock) / 1000,
        dtype=dtype,
    )


def _measured(given: argparse.Namespace, clock: Callable[[], float]) -> Iterator[list[Row]]:
    """The rows of each cell: of a table that was measured before, or measured now."""
    if given.measured:
        rows = read_rows(given.measured)
        for cell in dict.fromkeys(row.cell for row in rows if row.dtype == given.dtype):
            yield [row for row in rows if row.cell == cell and row.contender in NAMES]
        return
    methods: list[Contender] = [one for one in FUSED if one.name in NAMES]
    cells = [replace(cell, dtype=given.dtype) for cell in selection(given.selection)]
    for cell in dict.fromkeys(cells):
        yield run_cell(cell, methods, torch.device("cpu"), given.repetitions, given.seconds, clock)


def main() -> None:
    """Measure, print predicted and measured ratios, and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--selection", default="targets")
    parser.add_argument("--dtype", default="bfloat16", help="Of the models; processors without it emulate bfloat16.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=60.0, help="Time limit of a cell, after five repetitions.")
    parser.add_argument(
        "--processor",
        action="store_true",
        help="Read the processor's time of this process, which other work disturbs less; one thread.",
    )
    parser.add_argument("--measured", type=Path, help="A table of orthotune bench on this processor: no model is run.")
    parser.add_argument("--out", type=Path, help="A CSV file.")
    given = parser.parse_args()
    if given.processor and given.threads != 1:
        parser.error("--processor adds up the time of all threads: give --threads 1 with it")
    clock = time.process_time if given.processor else time.perf_counter
    torch.set_num_threads(given.threads)
    device = measured_device(given.dtype, 128 if given.selection == "smoke" else 2048, clock)
    print(
        f"{device.name}, {given.threads} threads: {device.bandwidth / 1e9:.1f} GB/s, {device.products / 1e9:.0f} "
        f"GFLOP/s in {device.dtype}, {device.float32 / 1e9:.0f} in small float32 products, {device.launch * 1e6:.1f} us"
        " an operation"
    )
    rows = []
    for found in _measured(given, clock):
        cell = found[0].cell
        print(f"\n{cell.label}")
        for row in found:
            predicted = predicted_ratio(cell, row.contender, device)
            off = None if predicted is None else round(predicted / row.median - 1, 3)
            words = "no prediction" if off is None else f"predicted {predicted:.3f}  off by {off:+.0%}"
            print(f"  {row.contender:<12} measured {row.median:.3f} ({row.p10:.3f}-{row.p90:.3f})  {words}", flush=True)
            rows.append({
                "cell": cell.label, "contender": row.contender, "measured": row.median, "p10": row.p10, "p90": row.p90,
                "repetitions": row.repetitions, "predicted": predicted, "off": off, "threads": row.threads,
                "clock": clock.__name__, "bandwidth": round(device.bandwidth), "products": round(device.products),
                "float32": round(device.float32), "launch": device.launch, "load": row.load,
                "device_name": device.name, "versions": row.versions, "commit": row.commit,
            })  # fmt: skip
    if given.out:
        write_table(given.out, rows)


if __name__ == "__main__":
    main()
