"""Seconds of the processor to load a hundred adapters on one base, activate each and delete each, beside PEFT's LoRA.

    python benchmarks/loading_adapters.py --count 100 --out benchmarks/results/loading-adapters-cpu.csv

A Llama of random weights; one adapter of all seven projections on disk, which is loaded under a hundred names by
``load_adapter``, the same call for both methods. One thread, the processor's time of this process: other work on the
machine disturbs it little. The first ten and the last ten are reported apart, because a hundred adapters must not make
the next one dearer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from harness import llama, machine
from harness.cells import Cell
from harness.mixed_batch import BLOCK, RANK
from orthotune.files.platforms import load_average
from orthotune.files.tables import write_table
from orthotune.tuner.config import OFTConfig

CONFIGS = {
    "lora": lambda: LoraConfig(r=RANK, target_modules=llama.PROJECTIONS),
    "orthotune": lambda: OFTConfig(oft_block_size=BLOCK, use_cayley_neumann=False, target_modules=llama.PROJECTIONS),
}
#: loads at either end that are reported apart
TEN = 10


def _base(hidden: int, layers: int) -> Any:
    torch.manual_seed(0)
    return llama.build(Cell(hidden=hidden, tokens=8, layers=layers))[0].requires_grad_(False).eval()


def _each(count: int, job: Callable[[str], object]) -> list[float]:
    """Seconds of the processor of ``job`` for every name."""
    found = []
    for number in range(count):
        began = time.process_time()
        job(f"a{number}")
        found.append(time.process_time() - began)
    return found


def measured(name: str, count: int, hidden: int, layers: int) -> dict[str, float]:
    """Seconds of the processor for one method.

    Args:
        name: of :data:`CONFIGS`.
        count: adapters.
        hidden: width of the model.
        layers: Llama blocks.

    Returns:
        Medians of the first and of the last loads, activations and deletions, and the sum of all loads.

    Example:
        >>> measured("orthotune", 3, 128, 1)["load_first"] > 0
        True
    """
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trained = get_peft_model(_base(hidden, layers), CONFIGS[name]())
        for key, parameter in trained.named_parameters():
            if "lora_" in key or "oft_" in key:
                parameter.normal_(std=0.02)
        trained.save_pretrained(folder)
        model = PeftModel.from_pretrained(_base(hidden, layers), folder, "first").eval()
        x = torch.randn(1, 1, hidden)

        def activate(adapter: str) -> None:
            model.set_adapter(adapter)
            model(inputs_embeds=x, use_cache=False)

        loads = _each(count, lambda adapter: model.load_adapter(folder, adapter))
        used = _each(count, activate)
        model.set_adapter("first")
        deleted = _each(count, model.delete_adapter)
    ends = {"load": loads, "first_token": used, "delete": deleted}
    found = {f"{what}_{end}": median(times[:TEN] if end == "first" else times[-TEN:])
             for what, times in ends.items() for end in ("first", "last")}  # fmt: skip
    return {**found, "load_all": sum(loads)}


def main() -> None:
    """Measure both methods in alternation, print and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, help="A CSV file.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for repetition in range(given.repetitions):
        for name in CONFIGS:
            found = measured(name, given.count, given.hidden, given.layers)
            print(name, "  ".join(f"{what} {seconds * 1e3:.1f} ms" for what, seconds in found.items()), flush=True)
            rows.append({
                "method": name, "repetition": repetition, "adapters": given.count, "hidden": given.hidden,
                "layers": given.layers, **{what: round(seconds, 5) for what, seconds in found.items()},
                "load": load_average(), "device_name": machine.device_name(torch.device("cpu")),
                "versions": machine.versions(), "commit": machine.commit(),
            })  # fmt: skip
    if given.out:
        write_table(given.out, rows)


if __name__ == "__main__":
    main()
