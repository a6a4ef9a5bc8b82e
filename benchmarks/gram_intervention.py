"""Less of the parts that distort activations most: does a run forget less by it than by less of the others?

    python benchmarks/gram_intervention.py RUN --out benchmarks/results/gram-intervention.csv

RUN is a finished run of ``orthotune train sft``. A part is the adapter of all layers of one depth. Each part by itself
gives a distortion of the Gram matrix of the activations of new texts, and a relative change of its weights. Then half
of the parts act at a strength of 0.4: those with the larger distortion, those with the smaller one, the same by the
change of weights, and for comparison every other depth. Gain and forgetting are measured for each choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from orthotune import PeftModel
from orthotune.experiments.forgetting import grouped
from orthotune.files.tables import write_table
from orthotune.layers.base import OFTLayer
from orthotune.metrics.activation_change import activation_changes
from orthotune.metrics.text_loss import TokenRow, mean_loss
from orthotune.recipes.held_out import held_out_rows, settings_of_run
from orthotune.runs.quiet import quiet
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.sft_trainer import some_rows
from orthotune.text.weight_pairs import weight_pairs

#: the strength of the chosen half
LESS = 0.4


def opened(run: Path, tokens: int) -> tuple[Any, dict[str, list[TokenRow]]]:
    """The finished model in float32, and rows of either domain."""
    settings = settings_of_run(run)
    with quiet():
        base = load_model(settings.model, torch.float32)
        model = PeftModel.from_pretrained(base, run / "adapter").eval()
        rows = held_out_rows(model, load_tokenizer(settings.model), settings)
    return model, {domain: some_rows(own, tokens) for domain, own in rows.items()}


def at(layers: Iterable[Any], strengths: dict[int, float], other: float = 1.0) -> None:
    """Let each layer act at its strength, by its identity."""
    for layer in layers:
        layer.set_scale("default", strengths.get(id(layer), other))


def parts(model: Any, rows: list[TokenRow]) -> Iterator[dict[str, Any]]:
    """Depth, layers, Gram distortion with the part alone, and relative change of its weights."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, OFTLayer)}
    pairs = {name: (before, after) for name, before, after in weight_pairs(model)}
    for name, own in grouped(layers).items():
        if not name.startswith("layer "):
            continue
        at(layers.values(), {id(layer): 1.0 for layer in own}, 0.0)
        blocks = activation_changes(model, rows, None)[1:]
        found = [pairs[key] for key, layer in layers.items() if any(layer is one for one in own)]
        moved = sum(float((after - before).double().square().sum()) for before, after in found)
        size = sum(float(before.double().square().sum()) for before, _ in found)
        yield {"depth": int(name.split()[1]), "layers": own, "change": (moved / size) ** 0.5,
               "gram": sum(float(block.gram) for block in blocks) / len(blocks)}  # fmt: skip


def main() -> None:
    """Measure the parts, then the choices, and write both."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=2000, help="of either domain, to measure a choice")
    parser.add_argument("--part-tokens", type=int, default=512, help="of the new texts, to measure a part")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    model, rows = opened(args.run, args.tokens)
    with torch.no_grad():
        found = list(parts(model, some_rows(rows["new"], args.part_tokens)))
        every = [layer for part in found for layer in part["layers"]]
        half = len(found) // 2
        by_gram, by_change = (sorted(found, key=lambda part: -part[key]) for key in ("gram", "change"))
        choices: dict[str, list[dict[str, Any]]] = {
            "none": [], "all": found, "larger distortion": by_gram[:half], "smaller distortion": by_gram[half:],
            "larger change": by_change[:half], "smaller change": by_change[half:],
            "even depths": found[::2], "odd depths": found[1::2],
        }  # fmt: skip
        at(every, {}, 0.0)
        base = {domain: mean_loss(model, own).nats for domain, own in rows.items()}
        table: list[dict[str, Any]] = []
        for name, chosen in choices.items():
            at(every, {id(layer): LESS for part in chosen for layer in part["layers"]})
            now = {domain: mean_loss(model, own).nats for domain, own in rows.items()}
            gram = activation_changes(model, some_rows(rows["new"], args.part_tokens), None)[1:]
            table.append({"less of": name, "gain": base["new"] - now["new"], "forgetting": now["old"] - base["old"],
                          "gram": sum(float(block.gram) for block in gram) / len(gram),
                          "depths": " ".join(str(part["depth"]) for part in chosen)})  # fmt: skip
            print({key: value for key, value in table[-1].items() if key != "depths"}, flush=True)
    write_table(args.out, table)
    measured = [{key: part[key] for key in ("depth", "gram", "change")} for part in found]
    write_table(args.out.with_name(f"{args.out.stem}-parts.csv"), measured)


if __name__ == "__main__":
    main()
