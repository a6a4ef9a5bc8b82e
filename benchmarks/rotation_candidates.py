"""Train candidates for adapters as parametrizations of the built-in text model, and measure their gain on the target
domain and their forgetting on the source domain at several strengths.

    python benchmarks/rotation_candidates.py kind=lowrank rank=8 learning_rate=5e-3 --out candidates.csv

Kinds: ``blocks`` (OFT; ``side`` in, out or both; ``permuted``, ``magnitude``, ``dropout``, ``largest_angle``),
``butterfly`` (``factors`` of blocks with a perfect shuffle between them, as BOFT), ``lowrank`` (one rotation per layer
whose skew generator is ``A B^T - B A^T`` of rank 2r), ``subspace`` (a rotation within ``width`` directions, chosen by
``directions``, as PSOFT), ``plain_blocks`` (``W (I + A)`` without orthogonality), ``symmetric_blocks``
(``W (I + A + A^T)``), ``lora``, ``dora``, ``pissa``, ``full``.

``scale_rate``: factor of the learning rate for magnitudes. ``optimizer``: ``adam``, or Adam with a second moment per
``block``, ``layer`` or ``model``; ``recentred``: set the generator to zero after each step. ``frame``: the inputs are
rotated in a frame from the second moments of source inputs (``deviation``, ``root``, ``principal``). ``keep`` is the
weight of KL(base || adapted) on source texts, from the test split, because the source domain is measured on the
validation split. Every second row of both validation splits is measured.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from candidate_kinds import KINDS, Candidate, Rotation, skew
from candidate_optimizers import SharedAdam, recentre
from candidate_settings import Settings
from candidate_subspaces import directions_for, frames_for
from orthotune.metrics.text_loss import mean_loss, token_rows
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.worlds import text

LENGTH = 256


def main() -> None:
    """Read the command line, run, and append one line per strength to the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="KEY=VALUE", help=", ".join(f.name for f in fields(Settings)))
    parser.add_argument("--out", type=Path, default=Path("candidates.csv"))
    options = parser.parse_args()
    given: dict[str, Any] = {}
    for word in options.words:
        key, _, value = word.partition("=")
        kinds = {f.name: type(f.default) for f in fields(Settings)}
        if key not in kinds:
            parser.error(f"{key}: no such setting, needed is one of {', '.join(kinds)}")
        given[key] = kinds[key](value)
    rows = run(Settings(**given))
    new = not options.out.exists()
    with options.out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(f"strength {row['strength']:g}: gain {row['gain']:+.4f}, forgetting {row['forgetting']:+.4f}")


def run(settings: Settings) -> list[dict[str, Any]]:
    """Train one candidate and measure it; one row per strength, losses in nats per token."""
    tokenizer, model = load_tokenizer(str(text.MODEL)), load_model(str(text.MODEL), torch.float32)
    torch.manual_seed(settings.seed)
    held_out = {name: _rows(tokenizer, f"{name}_validation")[::2] for name in ("new", "old")}
    train, old = _chunks(tokenizer, "new_train"), _chunks(tokenizer, "old_test")
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and "lm_head" not in name
        and (settings.projections == "all" or name.rpartition(".")[2] in settings.projections.split("+"))
    ]
    model.requires_grad_(False)
    chosen = directions_for(settings, model, layers, train, old) if settings.directions else None
    chosen = frames_for(settings.frame, model, layers, old) if settings.frame else chosen
    candidates: list[Candidate] = []
    for place, layer in enumerate(layers):
        weight = layer.weight.detach()
        basis = None if chosen is None else chosen(place, weight)
        candidate = KINDS[settings.kind](weight, place, settings, basis)
        parametrize.register_parametrization(layer, "weight", candidate, unsafe=True)
        candidates.append(candidate)
    base = load_model(str(text.MODEL), torch.float32) if settings.keep else None

    def measured(strength: float) -> dict[str, float]:
        for candidate in candidates:
            candidate.set_strength(strength)
        with parametrize.cached():
            return {name: mean_loss(model, rows).nats for name, rows in held_out.items()}

    before = measured(0.0)
    measured(1.0)
    began = time.monotonic()
    _train(model, candidates, train, old, base, settings)
    seconds = time.monotonic() - began
    trained = sum(p.numel() for candidate in candidates for p in candidate.parameters())
    rows = []
    for strength in map(float, settings.strengths.split(",")):
        after = measured(strength)
        found = {"gain": before["new"] - after["new"], "forgetting": after["old"] - before["old"]}
        found = {name: round(value, 5) for name, value in found.items()}
        used = {key: value for key, value in asdict(settings).items() if key != "strengths"}
        rows.append({**used, "trained": trained, "seconds": round(seconds, 1), "strength": strength, **found})
    return rows


def _train(model: Any, candidates: list[Candidate], train: Tensor, old: Tensor, base: Any, settings: Settings) -> None:
    parameters = [p for candidate in candidates for p in candidate.parameters()]
    if settings.optimizer == "adam":
        named = [one for candidate in candidates for one in candidate.named_parameters()]
        faster = {"lr": settings.learning_rate * settings.scale_rate}
        groups: list[dict[str, Any]] = [
            {"params": [p for name, p in named if "scale" not in name]},
            {"params": [p for name, p in named if "scale" in name], **faster},
        ]
        optimizer: Any = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    else:
        optimizer = SharedAdam(parameters, settings.learning_rate, settings.optimizer)
    warmup = max(1.0, settings.warmup * settings.steps)

    def factor(step: int) -> float:
        rest = max(0.0, step - warmup) / max(1.0, settings.steps - warmup)
        shape = {"cosine": 0.5 * (1 + math.cos(math.pi * rest)), "linear": 1 - rest, "constant": 1.0}
        return min(1.0, (step + 1) / warmup) * shape[settings.schedule]

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    generator = torch.Generator().manual_seed(settings.seed)
    size = settings.batch_size
    rounds = settings.steps * size // len(train) + 1
    order = torch.cat([torch.randperm(len(train), generator=generator) for _ in range(rounds)])
    model.train()
    for step in range(settings.steps):
        batch = train[order[step * size : (step + 1) * size]]
        with parametrize.cached():
            loss = model(batch, labels=batch).loss
            if base is not None:
                kept = old[torch.randint(len(old), (settings.keep_batch,), generator=generator)]
                with torch.no_grad():
                    wanted = base(kept).logits.log_softmax(-1)
                now = model(kept).logits.log_softmax(-1)
                loss = loss + settings.keep * (wanted.exp() * (wanted - now)).sum(-1).mean()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if settings.recentred:
            recentre(candidates)
        if settings.largest_angle:
            _cap(candidates, settings.largest_angle)
    model.eval()


@torch.no_grad()
def _cap(candidates: list[Candidate], angle: float) -> None:
    """Limit all rotation angles to ``angle`` radians; the Cayley map rotates by 2 atan of a singular value."""
    for rotation in (module for candidate in candidates for module in candidate.modules()):
        if isinstance(rotation, Rotation):
            largest = torch.linalg.matrix_norm(skew(rotation.packed, rotation.size), 2)
            rotation.packed.mul_((math.tan(angle / 2) / largest.clamp_min(1e-9)).clamp(max=1)[:, None])


def _chunks(tokenizer: Any, split: str) -> Tensor:
    ids: list[int] = []
    for document in text.load_split(split):
        ids += [*tokenizer(document["text"])["input_ids"], tokenizer.eos_token_id]
    return torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)


def _rows(tokenizer: Any, split: str) -> Any:
    return token_rows(tokenizer, [document["text"] for document in text.load_split(split)], LENGTH)


if __name__ == "__main__":
    main()
