"""Write the table of docs/evidence/quantized.md from the measurements of the tests; `make quant-table` does both.

python benchmarks/quantized_table.py ROWS.jsonl docs/evidence/quantized.md
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- the table: written by make quant-table -->\n", "<!-- the end of the table -->\n"
HEAD = [
    "library", "layer", "dtype", "forward", "gradient: x, adapter", "after evaluation: x, adapter", "own error",
    "merge error", "unmerged bits", "dense merge", "Llama: share, loss (float)",
]  # fmt: skip


def line(row: dict[str, Any], ambiguous: bool) -> str:
    """One row of the table; ``ambiguous`` adds the name of the layer in the test to its mode."""

    def both(suffix: str = "") -> str:
        return f"{small(row['gradient_x' + suffix])}, {small(row['gradient_adapter' + suffix])}"

    cells = [
        row["library"],
        f"{row['mode']} ({row['layer']})" if ambiguous else row["mode"],
        row["dtype"],
        small(row["forward"]),
        both(),
        both("_after_eval"),
        small(row["own"]),
        "refused" if row["merged"] is None else small(row["merged"]),
        {True: "same", None: "-"}.get(row["unmerged_bits"], "**differ**"),
        small(row["dense"]),
        f"{row['share']:.0%}, {row['loss']:.3f} ({row['float_loss']:.3f})",
    ]
    return f"| {' | '.join(cells)} |"


def small(number: float) -> str:
    """A number with two digits."""
    return "0" if number == 0 else f"{number:.1e}".replace("e-0", "e-").replace("e+00", "")


def table(rows: list[dict[str, Any]]) -> str:
    """The complete table, one line per library and layer, sorted."""
    kept: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in rows:  # torchao is in all environments
        kept.setdefault((row["library"].lower(), row["mode"], row["layer"]), row)
    alike = Counter((row["library"], row["mode"], row["dtype"]) for row in kept.values())
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
    for key in sorted(kept):
        row = kept[key]
        lines.append(line(row, alike[row["library"], row["mode"], row["dtype"]] > 1))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write the table between its two marks."""
    source, page = map(Path, sys.argv[1:3])
    rows = [json.loads(text) for text in source.read_text(encoding="utf-8").splitlines()]
    text = page.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    page.write_text(head + BEGIN + "\n" + table(rows) + "\n" + END + tail, encoding="utf-8")


if __name__ == "__main__":
    main()
