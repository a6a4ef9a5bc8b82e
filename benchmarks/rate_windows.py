"""The best learning rate of each method or block size, the width of the window around it, and the rule that fits.

    orthotune compare sft benchmarks/block-rates.yaml output=runs/block-rates
    python benchmarks/rate_windows.py runs/block-rates/comparison.csv

Reads the rows of comparisons. Of each method that was run at three rates or more: the rate with the largest gain, by
the parabola through the best rate and its neighbours (over the logarithm of the rate); and the window, the factor
between the two rates at which 5 % of that gain are lost, interpolated between measured rates; "-" where the measured
rates do not reach so far on one side. For names like ``b64`` it also fits the exponent p of
``best rate = c (32 / b)^p`` and prints how far the best rate of each size is from that line, and from lines of given p.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from pathlib import Path
from statistics import fmean

#: the share of the largest gain that is left at the edges of the window
KEPT = 0.95
#: the exponents that are compared with the fitted one
EXPONENTS = (0.0, 0.5, 1.0)


def curves(rows: list[dict[str, str]], score: str) -> dict[str, list[tuple[float, float]]]:
    """(logarithm of the rate, mean score over seeds) of each method, by rising rate; of runs at full strength."""
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        if row[score] and row["learning_rate"] and float(row.get("strength") or 1) == 1:
            found.setdefault(row["method"], {}).setdefault(float(row["learning_rate"]), []).append(float(row[score]))
    return {
        name: [(math.log(rate), fmean(scores)) for rate, scores in sorted(rates.items())]
        for name, rates in found.items()
        if len(rates) > 2
    }


def peak(curve: list[tuple[float, float]]) -> tuple[float, float]:
    """Place and height of the largest score, by a parabola; the measured point itself at an end of the curve."""
    at = max(range(len(curve)), key=lambda index: curve[index][1])
    if at in (0, len(curve) - 1):
        return curve[at]
    (x0, y0), (x1, y1), (x2, y2) = curve[at - 1 : at + 2]
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    if bend == 0:
        return curve[at]
    x = (x0 + x1) / 2 - left / (2 * bend)
    return x, y1 + (x - x1) * (left + bend * (x - x0))


def edges(curve: list[tuple[float, float]], top: float) -> tuple[float | None, float | None]:
    """The places left and right of the largest score at which ``KEPT`` of ``top`` is left; None where none was met."""
    at, wanted = max(range(len(curve)), key=lambda index: curve[index][1]), KEPT * top
    found: list[float | None] = []
    for step, end in ((-1, -1), (1, len(curve))):
        place = None
        for index in range(at + step, end, step):
            (xa, ya), (xb, yb) = curve[index - step], curve[index]
            if yb <= wanted:
                place = xa + (xb - xa) * (ya - wanted) / (ya - yb) if ya > yb else xa
                break
        found.append(place)
    return found[0], found[1]


def main() -> None:
    """Read the command line, print the table and the fit."""
    parser = argparse.ArgumentParser(description="The best learning rates and the windows around them.")
    parser.add_argument("tables", type=Path, nargs="+", help="comparison.csv of `orthotune compare`")
    parser.add_argument("--score", default="gain", help="column whose largest value is looked for")
    args = parser.parse_args()
    rows = [row for path in args.tables for row in csv.DictReader(path.open(newline=""))]
    best: dict[int, float] = {}
    print(f"{'method':<12}{'best rate':>12}{args.score:>9}{'window from':>13}{'to':>10}{'factor':>8}")
    for name, curve in curves(rows, args.score).items():
        place, top = peak(curve)
        low, high = edges(curve, top)
        shown = ["-" if one is None else f"{math.exp(one):.2g}" for one in (low, high)]
        factor = "-" if low is None or high is None else f"{math.exp(high - low):.1f}"
        ended = " (at the end of the rates)" if place in (curve[0][0], curve[-1][0]) else ""
        print(f"{name:<12}{math.exp(place):>12.3g}{top:>9.3f}{shown[0]:>13}{shown[1]:>10}{factor:>8}{ended}")
        if (match := re.fullmatch(r"b(\d+)", name)) and not ended:
            best[int(match[1])] = place
    if len(best) < 2:
        return
    sizes = sorted(best)
    x, y = [math.log(32 / size) for size in sizes], [best[size] for size in sizes]
    mean_x, mean_y = fmean(x), fmean(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    print(f"\nbest rate = c (32 / b)^p: fitted p = {slope:.2f}")
    for exponent in (*EXPONENTS, round(slope, 2)):
        off = [b - mean_y - exponent * (a - mean_x) for a, b in zip(x, y, strict=True)]
        spread = math.exp(max(off) - min(off))
        print(f"p = {exponent:<5g} best rates stated for b=32 are within a factor of {spread:.2f} of each other")


if __name__ == "__main__":
    main()
