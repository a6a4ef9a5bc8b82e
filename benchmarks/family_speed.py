"""Training step, decoding and saved bytes of every transform, beside LoRA, the frozen model and PEFT's own methods.

    python benchmarks/family_speed.py --repetitions 15 --out family.csv

All methods alternate in one process; a ratio is a time divided by that of the frozen model in the same repetition.
The sizes give each about as many parameters as blocks of 32 have, where the method can be given a size: planes and
hyperplanes have no more than they have. Parameters are in the table.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from peft import BOFTConfig, HRAConfig, LoraConfig, PeftConfig, PsoftConfig, RoadConfig

from harness.cells import BASE, DECODE, Cell
from harness.contenders import Contender, stirred
from harness.measure import measure
from harness.saved_bytes import saved_bytes
from harness.step import step_of
from harness.subject import subject
from orthotune import OFTConfig


def ours(name: str, transform: str, **fields: object) -> Contender:
    """One of our transforms."""
    return Contender(name, OFTConfig, {"transform": transform, **fields})


def sized(cell: Cell) -> list[Contender]:
    """Methods with about the parameters of the cell's blocks."""
    b, d = cell.block_size, cell.hidden
    rank = b // 2
    subspace = round((b * d) ** 0.5)
    return [
        Contender("frozen"),
        Contender("lora", LoraConfig, {"r": max(b // 4, 1), "lora_alpha": max(b // 4, 1)}),
        Contender("blocks", OFTConfig, {"use_cayley_neumann": False}),
        ours("reflections", "reflections", r=rank, oft_block_size=None),
        ours("butterfly", "butterfly", oft_block_size=b // 2, factors=2),
        ours("planes", "planes", variant="road_4", side="out"),
        ours("subspace", "subspace", r=subspace, oft_block_size=None),
        ours("hyperplane", "hyperplane"),
    ]


def published(cell: Cell) -> list[Contender]:
    """PEFT's own methods in the same sizes; its layers of 1024 features at most, because some are slow."""
    b, d = cell.block_size, cell.hidden
    methods: list[tuple[str, type[PeftConfig], dict[str, object]]] = [
        ("peft_hra", HRAConfig, {"r": b // 2}),
        ("peft_boft", BOFTConfig, {"boft_block_size": b // 2, "boft_n_butterfly_factor": 2}),
        ("peft_road", RoadConfig, {"variant": "road_4", "group_size": b}),
        ("peft_psoft", PsoftConfig, {"r": round((b * d) ** 0.5)}),
    ]
    return [Contender(name, config, dict(fields)) for name, config, fields in methods]


def main() -> None:
    """Measure, print a table and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, default=BASE.hidden)
    parser.add_argument("--tokens", type=int, default=BASE.tokens)
    parser.add_argument("--layers", type=int, default=BASE.layers)
    parser.add_argument("--dtype", default=BASE.dtype)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=120.0, help="Time limit of a cell, after five repetitions.")
    parser.add_argument("--without-peft", action="store_true", help="Leave out PEFT's own methods.")
    parser.add_argument("--out", type=Path, help="A CSV file.")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    rows = []
    for start in (BASE, DECODE):
        tokens = chosen.tokens if start is BASE else 1
        cell = replace(start, hidden=chosen.hidden, tokens=tokens, layers=chosen.layers, dtype=chosen.dtype)
        frozen = subject(cell, device)
        wanted = sized(cell) + ([] if chosen.without_peft else published(cell))
        models = {one.name: stirred(one, frozen, cell) for one in wanted}
        steps = {name: step_of(frozen, model, cell.mode) for name, model in models.items()}
        print(cell.label, flush=True)
        for name, found in measure(steps, device, chosen.repetitions, chosen.seconds).items():
            model = models[name]
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            kept = saved_bytes(partial(frozen.call, model, frozen.x), model) if cell.mode == "train" else 0
            print(f"  {name:12} {found.median:6.2f} ({found.p10:.2f} to {found.p90:.2f})  {trained:>9,} parameters"
                  f"  {kept:>12,} bytes", flush=True)  # fmt: skip
            rows.append({"cell": cell.label, "name": name, "parameters": trained, "saved": kept, **asdict(found)})
    if chosen.out:
        with chosen.out.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)


if __name__ == "__main__":
    main()
