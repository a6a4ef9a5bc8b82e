"""Every kernel compiled for GPUs that are not here: shared memory, registers, spills and time of compilation.

Needs Triton, and neither a GPU nor its driver::

    python benchmarks/gpu_static.py --cards sm_89,gfx942
    python benchmarks/gpu_static.py --out benchmarks/results/gpu-static.csv   # takes up where it was interrupted

Triton compiles for a target that is named; the assembler in its wheel says how many registers a kernel takes and how
many bytes it spills, AMD's code object says the same of itself. Scalar registers of AMD that are kept in the lanes of
vector registers are no spills and have a count of their own: no memory is touched for them. What the library would
launch is read from ``orthotune.kernels.tiles``; kernels that ``orthotune.kernels.choose`` never selects on a card are
compiled with ``--every`` alone. Block sizes whose launches compile to one kernel share a row.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import resource
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from orthotune.files.tables import read_table, write_table
from orthotune.kernels import tiles
from orthotune.kernels.cards import CARDS, Card
from orthotune.kernels.choose import choose

SMALLEST, LARGEST = 2, tiles.LARGEST_ROTATED
#: of blocks that are compiled for; 12, 24, 31, 48, 50 and 100 are no powers of two
BLOCKS = (8, 12, 16, 24, 31, 32, 48, 50, 64, 100, 128, 256)
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
SECONDS = 5.0
#: registers of one multiprocessor, threads that it can hold: for occupancy
REGISTERS, THREADS = 65536, {75: 1024, 86: 1536, 89: 1536, 120: 1536}
#: rows of the input and blocks of one rotation in the launch that is compiled
ROWS, COUNT = 2048, 96


@dataclass(frozen=True)
class Case:
    """One kernel as it is launched for one block size and dtype.

    Args:
        kernel: name of the function in its module.
        operation: the one that :func:`choose` is asked about.
        block_size: of the rotations.
        dtype: of the inputs, by its name in torch.
        times: rotations of one input.
        transposed: the rotation is read transposed, as for the gradient of an input.
        size: rows of the matrix that is inverted, a part of a block.
    """

    kernel: str
    operation: str
    block_size: int
    dtype: str = "float32"
    times: int = 1
    transposed: bool = False
    size: int = 0

    def selected(self, card: Card) -> bool:
        """Whether the library would launch it on ``card``."""
        path = choose(self.operation, "cuda", getattr(torch, self.dtype), self.block_size, triton=True, card=card).path  # type: ignore[arg-type]
        return path == "triton" or (path == "products" and self.kernel == "_inverse")


@dataclass(frozen=True)
class Launch:
    """The arguments of a kernel, as far as the compiler sees them.

    Args:
        file: of the kernel.
        kernel: name of the function in it.
        types: of pointers and other arguments, by their names in Triton.
        integers: values of the integers whose value the compiler looks at.
        constants: that are known when the kernel is compiled.
        cut: tiles of the kernel.
    """

    file: str
    kernel: str
    types: dict[str, str]
    integers: dict[str, int]
    constants: dict[str, Any]
    cut: tiles.Tiles

    @property
    def seen(self) -> dict[str, str]:
        """What the compiler takes from each value, as Triton's launcher decides it: ``one``, or a multiple of 16."""
        found = {name: "sixteen" for name, kind in self.types.items() if kind.startswith("*")}
        found |= {name: "sixteen" for name, value in self.integers.items() if value % 16 == 0}
        return found | {name: "one" for name, value in self.integers.items() if value == 1}

    @property
    def signature(self) -> str:
        """The same for launches that compile to one kernel, another one after any change of its source."""
        about = [
            self.kernel, self.types, self.seen, self.constants, self.cut.warps, self.cut.stages, _source(self.file),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Compiled:
    """What the compiler reports of one launch on one architecture; ``error`` where it refused.

    ``spilled`` are bytes in memory, ``parked`` those of AMD's scalar registers in the lanes of vector registers.
    """

    architecture: str
    kernel: str
    operation: str
    dtype: str
    block_sizes: str
    times: int
    transposed: bool
    selected: bool
    shared: int | None = None
    card_shared: int | None = None
    registers: int | None = None
    spilled: int | None = None
    parked: int | None = None
    occupancy: float | None = None
    seconds: float | None = None
    error: str | None = None
    triton: str = ""
    signature: str = ""


@cache
def _source(file: str) -> str:
    """The kernels of a file without comments and docstrings."""
    tree = ast.parse((Path(tiles.__file__).parent / f"{file}.py").read_text(encoding="utf-8"))
    kernels = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    for node in kernels:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return "\n".join(ast.unparse(node) for node in kernels)


def cases(blocks: Iterable[int] = BLOCKS) -> Iterator[Case]:
    """Every kernel in every dtype and block size that the library has it for."""
    for size in blocks:
        if size <= tiles.LARGEST_CAYLEY:
            yield from (Case(kernel, "from_parameters", size) for kernel in ("_forward", "_backward"))
        else:
            yield from (Case("_inverse", "from_parameters", size, size=part) for part in sorted(_parts(size)))
        for dtype in DTYPES:
            yield from (Case("_rotate", "rotate", size, dtype, transposed=way) for way in (False, True))
            yield Case("_rotate_tokens", "rotate_tokens", size, dtype)
            for times in range(1, tiles.MOST_TOGETHER + 1):
                if tiles.fused(getattr(torch, dtype).itemsize, size, times):
                    yield Case("_backward", "rotate", size, dtype, times)
                    continue
                if times > 1:
                    yield Case("_back", "rotate", size, dtype, times)
                yield Case("_features", "rotate", size, dtype)


def _parts(size: int) -> set[int]:
    """Rows of the matrices that a kernel of ours inverts for a block."""
    if size <= tiles.LARGEST_CAYLEY:
        return {size}
    return _parts(size // 2) | _parts(size - size // 2)


def launch(case: Case) -> Launch:
    """How the library launches a case, for an input whose width is a multiple of 16."""
    number, size, stride = f"*{DTYPES[case.dtype]}", case.block_size, case.block_size**2
    if case.operation == "from_parameters":
        rows = case.size or size
        cut = tiles.cayley_tiles(rows)
        given = {"_forward": "v R b n scale", "_backward": "R dR dv b n scale", "_inverse": "A out n"}[case.kernel]
        types = {name: "i32" if name in "bn" else "fp32" if name == "scale" else "*fp32" for name in given.split()}
        integers = {"n": rows} if case.kernel == "_inverse" else {"b": size, "n": size * (size - 1) // 2}
        return Launch("triton_cayley", case.kernel, types, integers, {"B": cut.columns}, cut)
    item = getattr(torch, case.dtype).itemsize
    integers = {"rows": ROWS, "n": COUNT * size, "b": size}
    blocks = {"R_block": stride, "R_step": COUNT * stride}
    grads = dict.fromkeys(("g0", "g1", "g2"), number)
    if case.kernel == "_rotate_tokens":
        cut = tiles.tokens_tiles(item, size)
        types = {"x": number, "index": "*i64", "blocks": number, "y": number, "slots": "i32"}
        constants: dict[str, Any] = {"K": cut.inner, "N": cut.columns, "M": cut.rows}
        types |= dict.fromkeys(integers | {"slot_step": 0}, "i32")
        return Launch("triton_tokens", case.kernel, types, integers | {"slot_step": COUNT * stride},
                      {**constants, "WIDE": False}, cut)  # fmt: skip
    if case.kernel == "_rotate":
        cut = tiles.rotate_tiles(item, size)
        row, column = (1, size) if case.transposed else (size, 1)
        integers |= {"R_row": row, "R_col": column, **blocks}
        types = {"x": number, "R": "*fp32", "y": number, "times": "i32"}
        constants = {"K": cut.inner, "N": cut.columns, "M": cut.rows}
    elif case.kernel == "_features":
        cut = tiles.features_tiles(item)
        types = {"x": number, **grads, "dR": "*fp32"}
        constants = {"N": cut.columns, "M": cut.rows}
    elif case.kernel == "_back":
        cut = tiles.input_gradient_tiles(item, size)
        types, integers = {**grads, "R": "*fp32", "dx": number}, integers | blocks
        constants = {"TIMES": case.times, "K": cut.inner, "N": cut.columns, "M": cut.rows}
    else:
        cut = tiles.backward_tiles(item, size)
        types = {"x": number, **grads, "R": "*fp32", "dx": number, "dR": "*fp32"}
        integers |= blocks
        constants = {"WITH_DX": True, "TIMES": case.times, "B": tiles.width(size), "M": cut.rows, "CHUNK": tiles.CHUNK}
    types |= dict.fromkeys(integers, "i32")
    return Launch("triton_rotate", case.kernel, types, integers, {**constants, "WIDE": False}, cut)


def compiled(row: Compiled, given: Launch, card: Card) -> Compiled:
    """Compile one launch for one architecture.

    Args:
        row: what is known of it before.
        given: the launch.
        card: the GPU, which need not be here.
    """
    # A kernel from the cache takes no time; the assembler is asked as it is for a launch, with Triton's own options.
    os.environ |= {"TRITON_ALWAYS_COMPILE": "1", "TRITON_DUMP_PTXAS_LOG": "1"}
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = getattr(importlib.import_module(f"orthotune.kernels.{given.file}"), given.kernel)
    names, amd = kernel.arg_names, card.maker == "AMD"
    constants = given.constants | {name: 1 for name, seen in given.seen.items() if seen == "one"}
    # AMD's compiler knows tensors of less than 2 GB.
    near = [["tt.pointer_range", 32]] if amd else []
    hints = {(names.index(name),): [["tt.divisibility", 16], *(near if given.types[name].startswith("*") else [])]
             for name, seen in given.seen.items() if seen == "sixteen"}  # fmt: skip
    signature = {name: "constexpr" if name in constants else given.types[name] for name in names}
    wide = 64 if card.architecture.startswith("gfx9") else 32
    target = GPUTarget("hip", card.architecture, wide) if amd else GPUTarget("cuda", card.capability, 32)
    found = replace(row, triton=triton.__version__)
    before, report = _processor_seconds(), io.StringIO()
    try:
        with contextlib.redirect_stdout(report):
            done = triton.compile(
                triton.compiler.ASTSource(kernel, signature, constants, hints), target=target,
                options={"num_warps": given.cut.warps, "num_stages": given.cut.stages},
            )  # fmt: skip
    except Exception as error:  # a compiler's own, of many classes
        found.error = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return found
    found.seconds = round(_processor_seconds() - before, 2)
    found.shared = done.metadata.shared
    if amd:
        _read_amd(done.asm["amdgcn"], found)
    else:
        _read_nvidia(report.getvalue(), found, card, given.cut.warps)
    return found


def _processor_seconds() -> float:
    """Of this process and of the assemblers that it has run: other work on the machine does not count."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _read_nvidia(report: str, found: Compiled, card: Card, warps: int) -> None:
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    registers = re.search(r"Used (\d+) registers", report)
    assert spills is not None and registers is not None, f"the assembler reports no registers: {report}"
    found.registers, found.spilled = int(registers[1]), int(spills[1]) + int(spills[2])
    threads = THREADS.get(card.capability, 2048)
    held = REGISTERS // (-(-found.registers // 8) * 8 * warps * 32)
    if found.shared:
        held = min(held, card.shared // found.shared)
    found.occupancy = round(min(1.0, held * warps * 32 / threads), 2)


def _read_amd(code: str, found: Compiled) -> None:
    registers, vectors, scalars, memory = (
        int(re.findall(rf"\.{name}:\s+(\d+)", code)[-1])
        for name in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size")
    )
    found.registers, found.spilled = registers, max(4 * vectors, memory)
    # Each scalar register that is written to a lane is one that no memory holds.
    lanes = code.count("v_writelane_b32")
    found.parked = 4 * scalars
    if scalars > lanes:
        found.spilled += 4 * (scalars - lanes)


def runs(sizes: Sequence[int]) -> str:
    """Sizes in a few words.

    Example:
        >>> runs([9, 8, 10, 12])
        '8-10 12'
    """
    found: list[list[int]] = []
    for size in sorted(set(sizes)):
        if found and size == found[-1][-1] + 1:
            found[-1].append(size)
        else:
            found.append([size])
    return " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def planned(card: Card, blocks: Iterable[int] = BLOCKS, every: bool = False) -> list[tuple[Compiled, Launch]]:
    """The kernels that differ, for one card, not compiled yet.

    Args:
        card: the GPU, which need not be here.
        blocks: sizes of blocks.
        every: also those that the library does not select on this card.
    """
    found: dict[tuple[str, bool], tuple[Case, Launch, list[int]]] = {}
    for case in cases(blocks):
        selected = case.selected(card)
        if not selected and (not every or (case.dtype == "bfloat16" and 0 < card.capability < 80)):
            continue  # older cards cannot multiply it
        given = launch(case)
        found.setdefault((given.signature, selected), (case, given, []))[2].append(case.block_size)
    return [
        (Compiled(card.architecture, case.kernel, case.operation, case.dtype, runs(sizes), case.times, case.transposed,
                  selected, card_shared=card.shared, signature=signature), given)
        for (signature, selected), (case, given, sizes) in found.items()
    ]  # fmt: skip


def table(
    cards: Iterable[Card], blocks: Iterable[int] = BLOCKS, every: bool = False, done: Iterable[Compiled] = ()
) -> Iterator[Compiled]:
    """One row for each kernel that differs.

    Args:
        cards: GPUs, which need not be here.
        blocks: sizes of blocks.
        every: also kernels that the library does not select on a card.
        done: rows of an earlier run, which are not compiled again while neither kernel nor compiler has changed.
    """
    import triton

    known = {(row.architecture, row.signature): row for row in done if row.triton == triton.__version__}
    for card in cards:
        for row, given in planned(card, blocks, every):
            old = known.get((row.architecture, row.signature))
            yield (
                compiled(row, given, card)
                if old is None
                else replace(old, block_sizes=row.block_sizes, selected=row.selected, card_shared=row.card_shared)
            )


def read(path: Path) -> list[Compiled]:
    """The rows of a table that was written before; none where there is no such file."""
    return [_typed(row) for _, row in read_table(path, named="table")] if path.is_file() else []


def _typed(row: dict[str, str]) -> Compiled:
    kinds = {"int": int, "float": float, "bool": lambda word: word == "True", "str": str}
    found: dict[str, Any] = {}
    for field in fields(Compiled):
        kind, word = str(field.type), row.get(field.name, "")
        found[field.name] = None if word == "" and "None" in kind else kinds[kind.partition(" ")[0]](word)
    return Compiled(**found)


#: of a table of the worst: heading -> value of a row
WORST = {
    "shared memory, bytes": "shared",
    "registers": "registers",
    "spilled, bytes": "spilled",
    "compiling, s": "seconds",
}


def worst(rows: Sequence[Compiled]) -> list[str]:
    """The worst of each column among the selected kernels of each card, as a table of Markdown."""
    lines = ["| architecture | kernels | " + " | ".join(WORST) + " | least occupancy | refused |"]
    lines.append("|" + "---|" * (len(WORST) + 4))
    for name in dict.fromkeys(row.architecture for row in rows):
        own = [row for row in rows if row.architecture == name and row.selected]
        cells = [max((getattr(row, field) or 0 for row in own), default=0) for field in WORST.values()]
        words = [f"{cell:,}" for cell in cells]
        words[0] += f" (of {CARDS[name].shared:,})"
        held = [row.occupancy for row in own if row.occupancy is not None]
        refused = sum(row.error is not None for row in own)
        lines.append(f"| {name} | {len(own)} | {' | '.join(words)} | {min(held) if held else '-'} | {refused} |")
    return lines


def _cards(words: str) -> list[Card]:
    names = list(dict.fromkeys(word.strip() for word in words.split(",")))
    unknown = [name for name in names if name not in CARDS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)!r}: give some of {', '.join(CARDS)}")
    return [CARDS[name] for name in names]


def _blocks(words: str) -> tuple[int, ...]:
    sizes = [word.strip() for word in words.split(",")]
    if not all(size.isascii() and size.isdigit() and SMALLEST <= int(size) <= LARGEST for size in sizes):
        raise argparse.ArgumentTypeError(
            f"{words!r}: give sizes from {SMALLEST} to {LARGEST} with commas between them, such as 16,32,48"
        )
    return tuple(sorted({int(size) for size in sizes}))


def main() -> None:
    """Print the table, or JSON, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cards", type=_cards, default=list(CARDS.values()),
                        help=f"architectures, with commas between them: {', '.join(CARDS)}; default: all")  # fmt: skip
    parser.add_argument("--blocks", type=_blocks, default=BLOCKS,
                        help=f"block sizes, with commas between them; default: {runs(BLOCKS)}")  # fmt: skip
    parser.add_argument("--every", action="store_true", help="also kernels that are not selected on a card")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument(
        "--out", type=Path, help="a CSV file; its rows are not compiled again, and dropped by a complete run once stale"
    )
    given = parser.parse_args()
    try:
        import triton  # noqa: F401
    except ImportError:
        parser.error("Triton, the compiler of the kernels, is not installed; pip install triton needs no GPU")
    old = read(given.out) if given.out else []
    rows: list[Compiled] = []
    for row in table(given.cards, given.blocks, given.every, old):
        rows.append(row)
        if given.out:  # after every kernel: an interruption loses one
            made = {(one.architecture, one.signature) for one in rows}
            kept = [one for one in old if (one.architecture, one.signature) not in made]
            write_table(given.out, [asdict(one) for one in [*rows, *kept]])
        if not given.json:
            print(f"{row.architecture:<8} {row.kernel:<17} {row.dtype:<9} times={row.times} "
                  f"{'selected' if row.selected else 'not selected':<12} shared={row.shared} regs={row.registers} "
                  f"spilled={row.spilled} occupancy={row.occupancy} s={row.seconds} b={row.block_sizes[:40]} "
                  f"{row.error or ''}", flush=True)  # fmt: skip
    if given.out and set(given.cards) == set(CARDS.values()) and set(BLOCKS) <= set(given.blocks):
        write_table(given.out, [asdict(one) for one in rows])  # without kernels and tiles of earlier versions
    if given.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        return
    print("\n".join(["", *worst(rows)]))


if __name__ == "__main__":
    main()
