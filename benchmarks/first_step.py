"""Gain and forgetting of the first gradient step for each kind of change of the weights.

    python benchmarks/first_step.py --out first-step.csv --plot first-step.png
    python benchmarks/first_step.py --by-projection --out first-step-by-projection.csv

The gradient of the loss on the target domain at the base is projected onto the changes that a kind permits to first
order, scaled so that a linear loss would fall by the same amount, and applied to all layers of the text world.
``skew``: ``W Q``, the generator of a rotation in blocks; ``scales``: of inputs and outputs; ``symmetric``: ``W S``;
``hollow``: ``W S`` with a zero diagonal; ``blocks``: ``W A``, any block; ``lora``: ``G A^T A``, the first step of ``B``
in LoRA; ``full``: the gradient itself. The differences do not depend on learning rates, moments or noise.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.metrics.text_loss import mean_loss
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.worlds import text
from rotation_candidates import _chunks, _rows

#: Decrease of a linear loss, in nats per token.
AIMS = (0.02, 0.06, 0.09, 0.12, 0.15, 0.2, 0.3)
PART_AIMS = (0.01, 0.02, 0.04, 0.08)
CHUNKS, BATCH = 96, 8


def blocks_of(W: Tensor, G: Tensor, size: int) -> Tensor:
    """The diagonal blocks of ``W^T G``, ``(blocks, size, size)``: the gradient of ``A`` in ``W (I + A)``."""
    return torch.einsum("onb,onc->nbc", W.view(len(W), -1, size), G.view(len(G), -1, size))


def times(W: Tensor, A: Tensor) -> Tensor:
    """``W A`` for block-diagonal ``A``."""
    return torch.einsum("onb,nbc->onc", W.view(len(W), -1, A.shape[-1]), A).reshape(W.shape)


def lora(W: Tensor, G: Tensor) -> Tensor:
    A = torch.randn(7, W.shape[1], generator=torch.Generator().manual_seed(1)) / W.shape[1] ** 0.5
    return G @ A.T @ A


def skew(W: Tensor, G: Tensor) -> Tensor:
    A = blocks_of(W, G, 32)
    return times(W, (A - A.mT) / 2)


def symmetric(W: Tensor, G: Tensor) -> Tensor:
    A = blocks_of(W, G, 32)
    return times(W, (A + A.mT) / 2)


def hollow(W: Tensor, G: Tensor) -> Tensor:
    A = blocks_of(W, G, 32)
    return times(W, (A + A.mT) / 2 - torch.diag_embed(A.diagonal(dim1=1, dim2=2)))


def scales(W: Tensor, G: Tensor) -> Tensor:
    return W * (W * G).sum(0) + W * (W * G).sum(1, keepdim=True)


KINDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "skew": skew,
    "skew+scales": lambda W, G: skew(W, G) + scales(W, G),
    "scales": scales,
    "symmetric": symmetric,
    "hollow": hollow,
    "blocks": lambda W, G: times(W, blocks_of(W, G, 16)),
    "lora": lora,
    "full": lambda W, G: G,
}

LABELS = {
    "skew": "rotation (blocks of 32)", "skew+scales": "rotation, scales of both sides", "scales": "scales alone",
    "symmetric": "symmetric blocks of 32", "hollow": "the same, zero diagonal", "blocks": "any blocks of 16",
    "lora": "LoRA, rank 7", "full": "full gradient",
}  # fmt: skip
STYLES = {
    "skew": ("#1b7837", "o"), "skew+scales": ("#2166ac", "P"), "scales": ("#92c5de", "s"),
    "symmetric": ("#ca0020", "v"),
    "hollow": ("#f4a582", "v"), "blocks": ("#b8860b", "X"), "lora": ("#762a83", "^"), "full": ("#e08214", "D"),
}  # fmt: skip


def gradients(model: Any, layers: dict[str, nn.Linear], chunks: Tensor) -> dict[str, Tensor]:
    """The gradients of the mean loss over a fixed random sample of ``CHUNKS`` chunks."""
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    for ids in chunks[torch.randperm(len(chunks), generator=torch.Generator().manual_seed(0))[:CHUNKS]].split(BATCH):
        (model(ids, labels=ids).loss * len(ids) / CHUNKS).backward()
    found = {}
    for name, layer in layers.items():
        assert layer.weight.grad is not None
        found[name] = layer.weight.grad.clone()
        layer.weight.requires_grad_(False)
    return found


def main() -> None:
    """Read the command line, measure and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("first-step.csv"))
    parser.add_argument("--plot", type=Path, help="plot the table, which is measured only if it does not exist")
    parser.add_argument(
        "--by-projection", action="store_true", help="rotations and symmetric blocks, in one projection at a time"
    )
    asked = parser.parse_args()
    if not asked.out.exists():
        measure(asked.out, asked.by_projection)
    if asked.plot:
        draw(asked.out, asked.plot)


@torch.no_grad()
def measure(out: Path, by_projection: bool) -> None:
    """Write one line per kind, projection and size of the step."""
    tokenizer, model = load_tokenizer(str(text.MODEL)), load_model(str(text.MODEL), torch.float32)
    model.requires_grad_(False)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    W = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    with torch.enable_grad():
        G = gradients(model, layers, _chunks(tokenizer, "new_train"))
    held_out = {name: _rows(tokenizer, f"{name}_validation")[::2] for name in ("new", "old")}
    base = {name: mean_loss(model, rows).nats for name, rows in held_out.items()}
    rows = []
    projections = dict.fromkeys(name.rpartition(".")[2] for name in layers) if by_projection else ["all"]
    for place in projections:
        here = [name for name in layers if place == "all" or name.endswith(place)]
        for kind in ("skew", "symmetric") if by_projection else KINDS:
            change = {name: KINDS[kind](W[name], G[name]) for name in here}
            slope = sum(float((change[name] * G[name]).sum()) for name in here)
            length = sum(float(change[name].square().sum()) for name in here) ** 0.5
            norm = sum(float(G[name].square().sum()) for name in here) ** 0.5
            for aim in PART_AIMS if by_projection else AIMS:
                for name, layer in layers.items():
                    layer.weight.data = W[name] - aim / slope * change[name] if name in change else W[name]
                now = {name: mean_loss(model, own).nats for name, own in held_out.items()}
                found = {"gain": base["new"] - now["new"], "forgetting": now["old"] - base["old"]}
                rows.append({"kind": kind, "projection": place, "cosine": round(slope / length / norm, 4), "aim": aim}
                            | {key: round(value, 5) for key, value in found.items()})  # fmt: skip
                print(rows[-1], flush=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def draw(table: Path, plot: Path) -> None:
    """Plot gain over forgetting, one line per kind, beginning at the base."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    points: dict[str, list[tuple[float, float]]] = {}
    with table.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points.setdefault(row["kind"], [(0.0, 0.0)]).append((float(row["forgetting"]), float(row["gain"])))
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for kind, line in points.items():
        colour, style = STYLES[kind]
        axes.plot(*zip(*line, strict=True), color=colour, marker=style, markersize=4, linewidth=1.5, label=LABELS[kind])
    axes.axvline(0, color="#9e9e9e", linewidth=0.8, linestyle=":")
    axes.set(xlabel="forgetting on the source domain, nats/token", ylabel="gain on the target domain, nats/token",
             xlim=(-0.014, 0.032), ylim=(-0.005, 0.075))  # fmt: skip
    axes.set_title("One step down the gradient (up and left is better)", fontsize=11)
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(plot, dpi=130)


if __name__ == "__main__":
    main()
