"""Models on the GPU at hand, beside LoRA and beside what was predicted for the card: ``make bench-gpu``.

Made to be run once on any card, in under 10 minutes; writes ``gpu-NAME.csv`` with the card's name and all versions.
Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

from harness.cells import SELECTIONS, Cell
from harness.contenders import FUSED, Contender
from harness.predict import BLOCKS, GPUS, Gpu, predicted_ratio
from harness.run import run_cell
from orthotune.files.tables import write_table

#: seconds after which no further repetition of a cell starts
SECONDS = 15.0
NAMES = ("frozen", "lora", "lora_fused", "orthotune")


def known(name: str) -> Gpu | None:
    """The published numbers of a card that the driver calls ``name``; None where they are not known.

    Example:
        >>> known("NVIDIA GeForce RTX 4090").source
        'NVIDIA Ada GPU architecture white paper, appendix A'
    """
    return next((gpu for key, gpu in GPUS.items() if key in name.lower().replace(" ", "")), None)


def cells() -> list[Cell]:
    """The cells of the selection ``gpu``, with every block size that was predicted."""
    return [replace(cell, block_size=block) for cell in SELECTIONS["gpu"] for block in BLOCKS]


def main() -> int:
    """Measure and write the table; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the table")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print(
            "make bench-gpu: torch finds no GPU here, and nothing was measured. It needs a GPU that torch.cuda or ROCm "
            "serves, and a torch built for it. What a card should do: orthotune bench --predict h100",
            file=sys.stderr,
        )
        return 2
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    gpu, rows = known(name), []
    methods: list[Contender] = [one for one in FUSED if one.name in NAMES]
    path = given.out / f"gpu-{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.csv"
    for cell in cells():
        for row in run_cell(cell, methods, device, repetitions=20, seconds=SECONDS):
            ratio = None if gpu is None else predicted_ratio(cell, row.contender, gpu)
            rows.append({**asdict(row), "predicted": ratio})
            print(f"{cell.label:<55} {row.contender:<12} {row.median:.3f}  predicted {ratio or '-'}", flush=True)
        write_table(path, rows)  # after every cell: an interruption loses one
    print(f"table    {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
