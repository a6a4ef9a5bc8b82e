"""What merge-aware training of a 4-bit base costs and gains, beside training that is rounded once by the merge.

    python benchmarks/merge_aware.py --rows merge-aware.csv

The base is SmolLM2-135M in nf4 (``orthotune worlds get smollm2``, ``pip install bitsandbytes``), the texts are French
manual pages (``orthotune worlds get manpages-fr``). Both runs of a learning rate see the same batches in the same order
from the same start. Held-out losses in nats per token, over the same windows: of the adapter as it was evaluated, and
of the model after a merge into the 4-bit weights. With merge-aware training these two are the same bits, which is
checked on logits. Steps of the two runs alternate, so that what else the machine does falls on both; seconds are those
of the processor.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune import OFTConfig, get_peft_model, merge_aware
from orthotune.files.cache import cache_folder
from orthotune.files.installed_worlds import SMOLLM2, cached_model
from orthotune.text.causal_model import choose_dtype, load_model, load_tokenizer

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def windows(part: str, length: int, count: int) -> Tensor:
    """The first windows of the texts of a part.

    Args:
        part: ``train`` or ``validation``.
        length: tokens of a window.
        count: how many.

    Returns:
        ``(count, length)``.
    """
    tokenizer: Any = load_tokenizer(str(cached_model(SMOLLM2)))
    ids: list[int] = []
    with (cache_folder() / "texts" / "manpages-fr" / f"{part}.jsonl").open(encoding="utf-8") as file:
        for line in file:
            ids += tokenizer(json.loads(line)["text"])["input_ids"][: 2 * length]  # of each text its beginning
            if len(ids) >= count * length:
                return torch.tensor(ids[: count * length]).view(count, length)
    raise SystemExit(f"{part} has fewer than {count} windows of {length} tokens")


def loss(model: Any, ids: Tensor) -> Tensor:
    """Mean loss of the next token, in nats."""
    logits = model(ids).logits.float()[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out(model: Any, ids: Tensor) -> list[float]:
    """The loss of each window; eight a call, of which each quantizes all weights where training is merge-aware."""
    model.eval()
    found: list[float] = []
    for windows in ids.split(8):
        logits = model(windows).logits.float()[:, :-1].transpose(1, 2)
        found += torch.nn.functional.cross_entropy(logits, windows[:, 1:], reduction="none").mean(1).tolist()
    model.train()
    return found


def make(aware: bool, dtype: str) -> Any:
    """The 4-bit base with rotations that do nothing yet; what is not quantized is in ``dtype``."""
    torch.manual_seed(0)
    base = load_model(str(cached_model(SMOLLM2)), dtype=choose_dtype(dtype), quantization="nf4")
    model = get_peft_model(base, OFTConfig(oft_block_size=32, target_modules=TARGETS))
    if aware:
        merge_aware(model)
    return model


def step(model: Any, optimizer: torch.optim.Optimizer, ids: Tensor) -> float:
    """A step of training; its seconds of the processor, which hold beside other work on one thread."""
    begun = time.process_time()
    optimizer.zero_grad()
    loss(model, ids).backward()
    optimizer.step()
    return time.process_time() - begun


def compare(rate: float, words: argparse.Namespace) -> list[dict[str, Any]]:
    """Both runs of a learning rate, as rows."""
    train = windows("train", words.length, words.steps * words.batch)
    test = windows("validation", words.length, words.windows)
    models = {"plain": make(False, words.dtype), "merge-aware": make(True, words.dtype)}
    start = held_out(models["plain"], test)
    optimizers = {
        name: torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), rate, weight_decay=0)
        for name, model in models.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number, ids in enumerate(train.split(words.batch)):
        names = list(models) if number % 2 else list(models)[::-1]
        for name in names:
            for group in optimizers[name].param_groups:
                group["lr"] = rate * min(1.0, (number + 1) / 5, (words.steps - number) / (words.steps / 2))
            seconds[name].append(step(models[name], optimizers[name], ids))
    rows = []
    for name, model in models.items():
        evaluated = held_out(model, test)
        with torch.no_grad():
            before = model.eval()(test[:1]).logits
            model.merge_adapter()
            after = model(test[:1]).logits
        merged = held_out(model, test)
        lost = [b - a for a, b in zip(evaluated, merged, strict=True)]
        rows.append({
            "run": name, "dtype": words.dtype, "learning_rate": rate, "steps": words.steps,
            "tokens_a_step": words.batch * words.length, "windows": words.windows,
            "base": statistics.mean(start), "evaluated": statistics.mean(evaluated),
            "merged": statistics.mean(merged), "lost_by_the_merge": statistics.mean(lost),
            "standard_error": statistics.stdev(lost) / len(lost) ** 0.5, "same_bits": torch.equal(before, after),
            "seconds_a_step": statistics.median(seconds[name]),
            "step_beside_plain": statistics.median(
                own / other for own, other in zip(seconds[name], seconds["plain"], strict=True)
            ),
        })  # fmt: skip
    return rows


def main() -> None:
    """Train, merge and measure for each learning rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[4e-4, 1.2e-3])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rows", type=Path)
    words = parser.parse_args()
    rows = []
    for rate in words.rates:
        for row in compare(rate, words):
            rows.append(row)
            print({key: round(v, 5) if isinstance(v, float) else v for key, v in row.items()}, flush=True)
    if words.rows:
        with words.rows.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
