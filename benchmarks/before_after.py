"""Compare two versions of the library with a frozen model, alternating in one process: the cost of a change.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py --before ../before/src --threads 2 --repetitions 25

Each cell of ``orthotune bench targets`` (or of ``--selection``) is run with the frozen model, PEFT's LoRA, the version
at ``--before`` and this version. A ratio is a time divided by the time of the frozen model in the same repetition.
The other version may be much older than this harness: its configuration and ``register`` are all that is asked of it.
``--methods orthotune orthotune_channels`` puts more methods of this version beside it. With ``--transforms butterfly
planes`` those of ``family_speed.py`` are compared instead, each in both versions.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model

#: modules that hold classes of the library, and are imported anew for another version of it where it has them
OURS = ("orthotune", "harness", "family_speed")


def forget() -> None:
    """Remove the library, and the harness that imported it, from ``sys.modules``; their objects stay valid."""
    sys.modules["orthotune"].unregister()
    rotations = sys.modules.get("orthotune.layers.parametrization.rotation")
    if hasattr(rotations, "_operations"):  # for compiled code, which is not measured here; torch has one of each name
        rotations._operations._destroy()
    for name in [name for name in sys.modules if name.partition(".")[0] in OURS]:
        del sys.modules[name]


def library(source: Path) -> Any:
    """Import the library from a folder of sources and register it with PEFT."""
    if "orthotune" in sys.modules:
        forget()
    sys.path.insert(0, str(source))
    try:
        found = importlib.import_module("orthotune")
    finally:
        sys.path.remove(str(source))
    assert Path(found.__file__).is_relative_to(source), found.__file__
    return found


def adapted(source: Path, frozen: Any, cell: Any, names: list[str], family: bool) -> dict[str, torch.nn.Module]:
    """The methods ``names`` of one version of the library, with the same frozen weights; of the family's if asked."""
    library(source)
    bench = importlib.import_module("harness.contenders")
    cell_of_version = importlib.import_module("harness.cells").Cell(**vars(cell))
    known = importlib.import_module("family_speed").sized(cell_of_version) if family else bench.contenders("", cell)
    return {one.name: bench.stirred(one, frozen, cell_of_version) for one in known if one.name in names}


def adapted_before(
    source: Path, frozen: Any, cell: Any, targets: list[str], stir: Callable[[torch.nn.Module], torch.nn.Module]
) -> dict[str, torch.nn.Module]:
    """Blocks of a version that may be older than this harness: nothing of it is asked for but its configuration."""
    before = library(source)
    config = before.OFTConfig(target_modules=targets, oft_block_size=cell.block_size, use_cayley_neumann=False)
    before.register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"orthotune": stir(get_peft_model(frozen.twin(), config).train(cell.mode == "train"))}


def _given() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="The src folder of the other version.")
    parser.add_argument("--selection", default="targets")
    parser.add_argument("--mode", help="Only cells of this mode: train, eval or decode.")
    parser.add_argument("--dtype", help="Another dtype for all cells, such as float32.")
    parser.add_argument("--tokens", type=int, help="Only cells with this number of tokens.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=120.0, help="Time limit of a cell, after five repetitions.")
    parser.add_argument("--methods", nargs="*", default=["orthotune"], help="Of this version, beside the one before.")
    parser.add_argument("--transforms", nargs="*", default=[], help="Of family_speed.py, instead of blocks alone.")
    parser.add_argument(
        "--processor",
        action="store_true",
        help="Read the processor's time of this process, which other work disturbs less; one thread.",
    )
    parser.add_argument("--out", type=Path, help="A CSV file.")
    chosen = parser.parse_args()
    if chosen.processor and chosen.threads != 1:
        parser.error("--processor adds up the time of all threads: give --threads 1 with it")
    return chosen


def main() -> None:
    """Measure, print a table and write it."""
    chosen = _given()
    clock = time.process_time if chosen.processor else time.perf_counter
    torch.set_num_threads(chosen.threads)
    here = Path(__file__).resolve().parents[1] / "src"
    before = chosen.before.resolve()
    library(here)
    cells = importlib.import_module("harness.cells").selection(chosen.selection)
    cells = [replace(cell, dtype=chosen.dtype or cell.dtype) for cell in cells if chosen.mode in (None, cell.mode)]
    cells = [cell for cell in dict.fromkeys(cells) if chosen.tokens in (None, cell.tokens)]
    rows = []
    for cell in cells:
        library(here)
        device = torch.device("cpu")
        frozen = importlib.import_module("harness.subject").subject(cell, device)
        names, family = chosen.transforms or chosen.methods, bool(chosen.transforms)
        if family:
            models = adapted(before, frozen, cell, names, family)
        else:
            contenders = importlib.import_module("harness.contenders")
            models = adapted_before(before, frozen, cell, contenders.targets_of(cell), contenders.stir)
        models = {f"{name} before": one for name, one in models.items()}
        models = adapted(here, frozen, cell, ["frozen", "lora", *names], family) | models
        step_of = importlib.import_module("harness.step").step_of
        measure = importlib.import_module("harness.measure").measure
        saved_bytes = importlib.import_module("harness.saved_bytes").saved_bytes
        steps = {name: step_of(frozen, model, cell.mode) for name, model in models.items()}
        timings = measure(steps, device, chosen.repetitions, chosen.seconds, clock=clock)
        print(f"\n{cell.label}")
        for name, model in models.items():
            run = partial(frozen.call, model, frozen.x)
            held = saved_bytes(run, model) if cell.mode == "train" else 0
            t = timings[name]
            print(f"  {name:18} {t.median:.3f} ({t.p10:.3f}-{t.p90:.3f})  {held / 2**20:.1f} MiB", flush=True)
            rows.append({"cell": cell.label, "contender": name, "median": t.median, "p10": t.p10, "p90": t.p90,
                         "repetitions": t.repetitions, "saved_bytes": held})  # fmt: skip
    if chosen.out:
        with chosen.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
