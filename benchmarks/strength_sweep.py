"""Plot the loss on the target and the source domain over the strength of an adapter, on the built-in text model.

    python benchmarks/strength_sweep.py ADAPTER --out docs/images/strength.png

ADAPTER is the output of ``orthotune train sft --preset text-world 'rotation={}'``. The values are written to a JSON
file of the same name.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from orthotune import PeftModel
from orthotune.files.atomic import atomic_write
from orthotune.metrics.text_loss import nats_per_token
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.worlds import text

KINDS = ("geodesic", "linear")
SPLITS = {"new": "new_test", "old": "old_test"}
STYLES = {"new": ("#1b7837", "target domain (prose)"), "old": ("#762a83", "source domain (code)")}


def sweep(adapter: Path, strengths: list[float], documents: int | None) -> list[dict[str, Any]]:
    """One row per kind and strength: nats per token on both domains."""
    model: Any = PeftModel.from_pretrained(load_model(str(text.MODEL), torch.float32), adapter).eval()
    tokenizer = load_tokenizer(str(text.MODEL))
    texts = {name: [row["text"] for row in text.load_split(split)][:documents] for name, split in SPLITS.items()}
    rows = []
    for kind in KINDS:
        for t in strengths:
            model.set_scale("default", t, kind)
            losses = {name: nats_per_token(model, tokenizer, own, 256).nats for name, own in texts.items()}
            rows.append({"kind": kind, "strength": t, **losses})
            print(rows[-1], flush=True)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Two lines per domain: geodesic, and linear interpolation (dashed)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, (colour, label) in STYLES.items():
        for kind, style in zip(KINDS, ("-", "--"), strict=True):
            selected = [row for row in rows if row["kind"] == kind]
            legend = label if kind == "geodesic" else f"{label}, linear blend"
            axes.plot(
                [r["strength"] for r in selected],
                [r[name] for r in selected],
                style,
                color=colour,
                marker=".",
                label=legend,
            )
    axes.axvline(1, color="#9e9e9e", linewidth=0.8, linestyle=":")
    axes.set_xlabel("strength of the adapter")
    axes.set_ylabel("loss, nats per token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--out", type=Path, default=Path("strength.png"))
    parser.add_argument("--strengths", type=float, nargs="+", default=[-0.5, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2])
    parser.add_argument("--documents", type=int, help="of each domain; all by default")
    options = parser.parse_args()
    rows = sweep(options.adapter, options.strengths, options.documents)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draw(rows, options.out)


if __name__ == "__main__":
    main()
