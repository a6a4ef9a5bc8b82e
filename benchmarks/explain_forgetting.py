"""What explains forgetting, over all finished runs of comparisons: `python benchmarks/explain_forgetting.py FOLDER...`.

Writes one row per run with its gain, its forgetting and what it changed (`orthotune evaluate changes`), and prints the
rank correlation of each measure with forgetting, over all runs and within each method.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np

from orthotune.experiments.changes import TOKENS, changes_of
from orthotune.files.json_file import read_json
from orthotune.files.tables import write_table

MEASURES = ("shift", "procrustes", "gram", "cka")


def row_of(run: Path, tokens: int) -> dict[str, Any]:
    """One run: its settings, gain, forgetting, and its changes on either domain."""
    record, found = read_json(run / "run.json"), changes_of(run, tokens)
    settings = record["settings"]
    row: dict[str, Any] = {"run": run.name, **{key: settings[key] for key in ("method", "learning_rate", "seed")}}
    row |= {"data": settings["data"], "gain": record["gain"], "forgetting": record["forgetting"]}
    for domain, name in (("new", "target"), ("old", "source")):
        row[f"{name}_kl"] = found[domain].kl
        row |= {f"{name}_{measure}": found[domain].mean(measure) for measure in MEASURES}
    return row


def rank_correlation(x: list[float], y: list[float]) -> float:
    """Spearman's rank correlation, without ties; NaN for fewer than three values."""
    if len(x) < 3:
        return float("nan")
    ranks = [np.argsort(np.argsort(np.array(values))) for values in (x, y)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def main() -> None:
    """Read the command line, measure, write and print."""
    parser = argparse.ArgumentParser(description="What explains forgetting.")
    parser.add_argument("folders", type=Path, nargs="+", help="outputs of `orthotune compare sft`")
    parser.add_argument("--out", type=Path, required=True, help="CSV to write; rows that it has are not measured again")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.out.is_file():
        with args.out.open(newline="") as file:
            rows = list(csv.DictReader(file))
    known = {(row["run"], row["data"]) for row in rows}
    for run in sorted(path.parent for folder in args.folders for path in folder.glob("*/run.json")):
        if (run.name, read_json(run / "run.json")["settings"]["data"]) not in known:
            rows.append(row_of(run, args.tokens))
            write_table(args.out, rows)
            print(run.name, flush=True)
    methods = sorted({row["method"] for row in rows})
    measures = [key for key in rows[0] if key.startswith(("target_", "source_"))]
    print(f"{'measure':<20}" + "".join(f"{name:>10}" for name in ("all", *methods)))
    for measure in measures:
        cells = []
        for method in ("", *methods):
            own = [row for row in rows if not method or row["method"] == method]
            cells.append(rank_correlation([float(r[measure]) for r in own], [float(r["forgetting"]) for r in own]))
        print(f"{measure:<20}" + "".join(f"{cell:>10.2f}" for cell in cells))


if __name__ == "__main__":
    main()
