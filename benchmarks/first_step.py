"""What the first step of each kind of change brings: gain and forgetting along the steepest descent.

    python benchmarks/first_step.py --out first-step.csv

The gradient of the new domain's loss at the base, projected onto what a kind can change at first order, scaled so that
the loss would fall by the same amount if it were linear, and applied at once to all layers of the embedded text world.
``skew``: ``W Q``, a rotation's generator in blocks; ``scales``: of inputs and outputs; ``symmetric``: ``W S``;
``hollow``: ``W S`` with nothing on the diagonal; ``blocks``: ``W A``, any block; ``lora``: ``G A^T A``, what LoRA's
``B`` learns first; ``full``: the gradient itself. What differs here owes nothing to learning
rates, moments or noise.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rotation_candidates import _chunks, _rows
from torch import Tensor, nn

from orthotune.metrics.text_loss import mean_loss
from orthotune.training.causal_model import load_model, load_tokenizer
from orthotune.worlds import text

#: Nats by which the loss would fall if it were linear.
AIMS = (0.02, 0.06, 0.09, 0.12, 0.15, 0.2, 0.3)
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


def gradients(model: Any, layers: dict[str, nn.Linear], chunks: Tensor) -> dict[str, Tensor]:
    """Of the mean loss over the first ``CHUNKS`` of a fixed draw."""
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


@torch.no_grad()
def main() -> None:
    """One line per kind and step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("first-step.csv"))
    out = parser.parse_args().out
    tokenizer, model = load_tokenizer(str(text.MODEL)), load_model(str(text.MODEL), torch.float32)
    model.requires_grad_(False)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "lm_head" not in n}
    W = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    with torch.enable_grad():
        G = gradients(model, layers, _chunks(tokenizer, "new_train"))
    held_out = {name: _rows(tokenizer, f"{name}_validation")[::2] for name in ("new", "old")}
    base = {name: mean_loss(model, rows).nats for name, rows in held_out.items()}
    rows = []
    for kind, projected in KINDS.items():
        change = {name: projected(W[name], G[name]) for name in W}
        slope = sum(float((change[name] * G[name]).sum()) for name in W)
        length = sum(float(change[name].square().sum()) for name in W) ** 0.5
        whole = sum(float(G[name].square().sum()) for name in W) ** 0.5
        for aim in AIMS:
            for name, layer in layers.items():
                layer.weight.data = W[name] - aim / slope * change[name]
            now = {name: mean_loss(model, own).nats for name, own in held_out.items()}
            found = {"gain": base["new"] - now["new"], "forgetting": now["old"] - base["old"]}
            rows.append({"kind": kind, "cosine": round(slope / length / whole, 4), "aim": aim}
                        | {key: round(value, 5) for key, value in found.items()})  # fmt: skip
            print(rows[-1], flush=True)
    with out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
