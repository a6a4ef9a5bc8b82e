"""Every kernel compiled for GPUs that are not here: shared memory, registers, spills and time of compilation.

Needs Triton, and neither a GPU nor its driver::

    python benchmarks/gpu_static.py --cards sm_89,gfx942
    python benchmarks/gpu_static.py --json > static.json

Triton compiles for a target that is named; the assembler in its wheel says how many registers a kernel takes and how
many bytes it spills, AMD's code object says the same of itself. What the library would launch is read from
``orthotune.kernels.tiles``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from orthotune.kernels import tiles
from orthotune.kernels.cards import CARDS, Card
from orthotune.kernels.choose import choose

#: of blocks that are compiled for; 12, 31, 48 and 100 are no powers of two
BLOCKS = (8, 12, 16, 31, 32, 48, 64, 100, 128, 256)
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
SECONDS = 5.0
#: registers of one multiprocessor, threads that it can hold: for occupancy
REGISTERS, THREADS = 65536, {75: 1024, 86: 1536, 89: 1536, 120: 1536}


@dataclass(frozen=True)
class Case:
    """One kernel as it is launched for one block size and dtype.

    Args:
        kernel: name of the function in its module.
        operation: the one that :func:`choose` is asked about.
        block_size: of the rotations.
        dtype: of the inputs, by its name in torch.
        times: rotations of one input.
    """

    kernel: str
    operation: str
    block_size: int
    dtype: str = "float32"
    times: int = 1

    def selected(self, card: Card) -> bool:
        """Whether the library would launch it on ``card``."""
        kind = "from_parameters" if self.operation == "from_parameters" else "rotate"
        path = choose(kind, "cuda", getattr(torch, self.dtype), self.block_size, triton=True, card=card).path  # type: ignore[arg-type]
        return path == "triton" or (path == "products" and self.kernel == "_inverse")


@dataclass
class Compiled:
    """What the compiler reports of one case on one architecture; ``error`` where it refused."""

    kernel: str
    operation: str
    dtype: str
    block_sizes: list[int]
    times: int
    architecture: str
    selected: bool
    shared: int | None = None
    card_shared: int | None = None
    registers: int | None = None
    spilled: int | None = None
    occupancy: float | None = None
    seconds: float | None = None
    error: str | None = None


def cases(blocks: tuple[int, ...] = BLOCKS) -> Iterator[Case]:
    """Every kernel in every dtype and block size that the library has it for."""
    for size in blocks:
        if size <= tiles.LARGEST_CAYLEY:
            yield from (Case(kernel, "from_parameters", size) for kernel in ("_forward", "_backward"))
        else:
            yield Case("_inverse", "from_parameters", size)
        for dtype in DTYPES:
            yield Case("_rotate", "rotate", size, dtype)
            for times in range(1, tiles.MOST_TOGETHER + 1):
                if tiles.fused(getattr(torch, dtype).itemsize, size, times):
                    yield Case("_backward", "rotate", size, dtype, times)
                    continue
                if times > 1:
                    yield Case("_back", "rotate", size, dtype, times)
                yield Case("_features", "rotate", size, dtype)


def source(case: Case) -> tuple[Any, dict[str, str], dict[str, Any], tiles.Tiles]:
    """The kernel of a case, the types of its arguments, its constants and its tiles."""
    from orthotune.kernels import triton_cayley, triton_rotate

    number = f"*{DTYPES[case.dtype]}"
    size = case.block_size
    if case.operation == "from_parameters":
        while size > tiles.LARGEST_CAYLEY:
            size = (size + 1) // 2
        cut = tiles.cayley_tiles(size)
        given = {"_forward": "v R b n scale", "_backward": "R dR dv b n scale", "_inverse": "A out n"}[case.kernel]
        types = {name: "i32" if name in "bn" else "fp32" if name == "scale" else "*fp32" for name in given.split()}
        return getattr(triton_cayley, case.kernel), types, {"B": cut.columns}, cut
    item = getattr(torch, case.dtype).itemsize
    sizes = dict.fromkeys(("rows", "n", "b"), "i32")
    if case.kernel == "_rotate":
        cut = tiles.rotate_tiles(item, size)
        strides = dict.fromkeys(("R_row", "R_col", "R_block", "R_step", "times"), "i32")
        types = {"x": number, "R": "*fp32", "y": number} | sizes | strides
        return triton_rotate._rotate, types, {"K": cut.inner, "N": cut.columns, "M": cut.rows, "WIDE": False}, cut
    if case.kernel == "_features":
        cut = tiles.features_tiles(item)
        types = dict.fromkeys(("x", "g0", "g1", "g2"), number) | {"dR": "*fp32"} | sizes
        return triton_rotate._features, types, {"N": cut.columns, "M": cut.rows, "WIDE": False}, cut
    if case.kernel == "_back":
        cut = tiles.rotate_tiles(item, size)
        types = dict.fromkeys(("g0", "g1", "g2"), number) | {"R": "*fp32", "dx": number} | sizes
        constants = {"TIMES": case.times, "K": cut.inner, "N": cut.columns, "M": cut.rows, "WIDE": False}
        return triton_rotate._back, types | {"R_block": "i32", "R_step": "i32"}, constants, cut
    cut = tiles.backward_tiles(item, size)
    types = dict.fromkeys(("x", "g0", "g1", "g2"), number) | {"R": "*fp32", "dx": number, "dR": "*fp32"}
    types |= sizes | {"R_block": "i32", "R_step": "i32"}
    constants = {"WITH_DX": True, "TIMES": case.times, "B": tiles.width(size), "M": cut.rows, "CHUNK": tiles.CHUNK}
    return triton_rotate._backward, types, constants | {"WIDE": False}, cut


def _aligned(name: str, kind: str, case: Case) -> bool:
    """Whether a launch can promise that an argument is a multiple of 16, which lets the compiler load in runs."""
    if kind.startswith("*"):
        return True
    multiple = case.block_size % 16 == 0 and case.operation == "rotate"
    return multiple and name in ("n", "b", "R_row", "R_block", "R_step")


def compiled(case: Case, card: Card) -> Compiled:
    """Compile one case for one architecture.

    Args:
        case: the kernel and its sizes.
        card: the GPU, which need not be here.
    """
    os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # a kernel from the cache takes no time
    import triton
    from triton.backends.compiler import GPUTarget

    kernel, types, constants, cut = source(case)
    names = kernel.arg_names
    hints = {(names.index(name),): [["tt.divisibility", 16]] for name, kind in types.items()
             if _aligned(name, kind, case)}  # fmt: skip
    signature = {name: types.get(name, "constexpr") for name in names}
    if card.maker == "AMD":
        target = GPUTarget("hip", card.architecture, 64 if card.architecture.startswith("gfx9") else 32)
    else:
        target = GPUTarget("cuda", card.capability, 32)
    found = Compiled(
        case.kernel, case.operation, case.dtype, [case.block_size], case.times, card.architecture, case.selected(card),
        card_shared=card.shared,
    )  # fmt: skip
    before = _processor_seconds()
    try:
        done = triton.compile(
            triton.compiler.ASTSource(kernel, signature, constants, hints), target=target,
            options={"num_warps": cut.warps, "num_stages": cut.stages},
        )  # fmt: skip
    except Exception as error:  # a compiler's own, of many classes
        found.error = f"{type(error).__name__}: {str(error).strip()[:200]}"
        return found
    found.seconds = round(_processor_seconds() - before, 2)
    found.shared = done.metadata.shared
    if card.maker == "AMD":
        _read_amd(done.asm["amdgcn"], found)
    else:
        _read_nvidia(done.asm["ptx"], found, card, cut.warps)
    return found


def _processor_seconds() -> float:
    """Of this process and of the assemblers that it has run: other work on the machine does not count."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _read_nvidia(ptx: str, found: Compiled, card: Card, warps: int) -> None:
    from triton.backends.nvidia.compiler import get_ptxas

    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)
    assert target is not None
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "kernel.ptx"
        path.write_text(ptx)
        command = [
            get_ptxas(card.capability).path,
            "-v",
            "--gpu-name",
            target[1],
            str(path),
            "-o",
            str(path.with_suffix(".cubin")),
        ]
        report = subprocess.run(command, capture_output=True, text=True).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.search(r"Used (\d+) registers", report)
    assert spills is not None and registers is not None, report
    found.registers, found.spilled = int(registers[1]), int(spills[1]) + int(spills[2])
    threads = THREADS.get(card.capability, 2048)
    held = REGISTERS // (-(-found.registers // 8) * 8 * warps * 32)
    if found.shared:
        held = min(held, card.shared // found.shared)
    found.occupancy = round(min(1.0, held * warps * 32 / threads), 2)


def _read_amd(code: str, found: Compiled) -> None:
    registers, vectors, scalars = (
        int(re.findall(rf"\.{name}:\s+(\d+)", code)[-1])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
    )
    found.registers, found.spilled = registers, 4 * (vectors + scalars)


def table(cards: list[Card], blocks: tuple[int, ...] = BLOCKS) -> Iterator[Compiled]:
    """One row for each kernel that differs; block sizes that compile to the same kernel share it."""
    for card in cards:
        rows: dict[str, Compiled] = {}
        for case in cases(blocks):
            if case.dtype == "bfloat16" and 0 < card.capability < 80:
                continue  # these cards cannot multiply it
            kernel, types, constants, cut = source(case)
            hints = [name for name, kind in types.items() if _aligned(name, kind, case)]
            key = str((kernel.__name__, types, constants, cut, hints, case.selected(card)))
            if key in rows:
                rows[key].block_sizes.append(case.block_size)
            else:
                rows[key] = compiled(case, card)
        yield from rows.values()


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cards", default=",".join(CARDS), help="architectures, with commas between them")
    parser.add_argument("--blocks", default=",".join(map(str, BLOCKS)), help="block sizes, with commas between them")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    given = parser.parse_args()
    unknown = [name for name in given.cards.split(",") if name not in CARDS]
    if unknown:
        parser.error(f"--cards {', '.join(unknown)}: give some of {', '.join(CARDS)}")
    rows = []
    for row in table([CARDS[name] for name in given.cards.split(",")], tuple(map(int, given.blocks.split(",")))):
        rows.append(row)
        if not given.json:
            sizes = ",".join(map(str, row.block_sizes))
            print(f"{row.architecture:<8} {row.kernel:<17} {row.dtype:<9} b={sizes:<22} times={row.times} "
                  f"{'selected' if row.selected else 'not selected':<12} shared={row.shared} regs={row.registers} "
                  f"spilled={row.spilled} occupancy={row.occupancy} s={row.seconds} {row.error or ''}",
                  flush=True)  # fmt: skip
    if given.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)


if __name__ == "__main__":
    main()
