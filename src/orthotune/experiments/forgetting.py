"""Where a finished run learned and where it forgot: parts of its adapter are disabled, one after the other.

A part is all layers of one depth, or all projections of one name. With a part disabled, less is learned and less is
forgotten, and the comparison of both says what the part is worth. The intervention is made on the finished model. A
run that is trained without the part (``target_modules``, ``layers_to_transform``) can come out differently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from orthotune import PeftModel
from orthotune.errors import RecipeError
from orthotune.layers.base import OFTLayer
from orthotune.metrics.drift import text_drift
from orthotune.metrics.text_loss import TokenRow, mean_loss
from orthotune.quantized.loading_options import place
from orthotune.recipes.held_out import held_out_rows, settings_of_run
from orthotune.runs.quiet import quiet
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.weight_pairs import weight_pairs

Layer = OFTLayer | LoraLayer
DEPTH = re.compile(r"\.(\d+)\.")
ALL = "all"


@dataclass(frozen=True)
class Part:
    """The effect of the adapter of some layers.

    Args:
        name: ``all``, a depth as ``layer 2``, or a projection as ``down_proj``.
        gain, forgetting: of the model with this part disabled, or for ``all`` with every part enabled; nats per token.
        gain_lost, forgetting_saved: the difference to the model with every part enabled.
        drift: KL divergence from the base's predictions on the source domain with this part *alone* enabled, in nats
            per token.
        change: ``|W' - W| / |W|`` over the part's weights.
        effective_rank: of ``W' - W``: the exponential of the entropy of its squared singular values, mean over weights.
    """

    name: str
    gain: float
    forgetting: float
    gain_lost: float
    forgetting_saved: float
    drift: float
    change: float
    effective_rank: float


def effective_rank(difference: Tensor) -> float:
    """The exponential of the entropy of a matrix's squared singular values: 1 for rank one, n for n equal ones.

    Args:
        difference: a matrix, ``(out, in)``.

    Source: Roy and Vetterli, The effective rank, EUSIPCO 2007, with energies in the place of amplitudes.

    Example:
        >>> round(effective_rank(torch.eye(4)), 3)
        4.0
    """
    shares = torch.linalg.svdvals(difference.double()).square()
    shares = shares / shares.sum().clamp(min=torch.finfo(torch.float64).tiny)
    return float(torch.exp(-(shares * shares.clamp(min=torch.finfo(torch.float64).tiny).log()).sum()))


def parts_of(run: Path, say: Callable[[str], None] = print) -> list[Part]:
    """The parts of a finished run of ``orthotune train sft``, ``all`` first, measured on the run's held-out data.

    Args:
        run: the run directory.
        say: called with the name of each part before it is measured.

    Raises:
        RecipeError: no finished run there, one without an adapter, or one without a source domain.
    """
    settings = settings_of_run(run)
    if not (run / "adapter").is_dir():
        raise RecipeError(f"{run}", got="a model that was trained in full", needed="a run with an adapter")
    with quiet():
        base = load_model(settings.model, torch.float32, settings.quantization)
        base = base if settings.quantization else base.to(place())
        model: Any = PeftModel.from_pretrained(base, run / "adapter").eval()
        _check_divisible(model, run)
        rows = held_out_rows(model, load_tokenizer(settings.model), settings)
    if not {"new", "old"} <= set(rows):
        raise RecipeError(f"{run}", got="no target or no source domain", do="Train with old_data and eval_data")
    return list(_parts(model, rows, say))


def _check_divisible(model: Any, run: Path) -> None:
    """Refuse adapters that a strength of 0 does not disable."""
    config = model.peft_config["default"]
    for key, what in (("use_dora", "DoRA's magnitudes"), ("modules_to_save", "modules that were trained in full")):
        if getattr(config, key, None):
            raise RecipeError(f"{run}", got=what, needed="an adapter whose layers can be disabled one by one")


def _parts(model: Any, rows: dict[str, list[TokenRow]], say: Callable[[str], None]) -> Iterator[Part]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, (OFTLayer, LoraLayer))}
    groups = {ALL: list(layers.values())} | grouped(layers)
    facts = {name: (before, after) for name, before, after in weight_pairs(model)}
    _switch(layers.values(), [])
    base = _losses(model, rows)
    _switch(layers.values(), layers.values())
    complete = _losses(model, rows)
    for name, group in groups.items():
        say(name)
        _switch(layers.values(), [layer for layer in layers.values() if name == ALL or layer not in group])
        losses = complete if name == ALL else _losses(model, rows)
        _switch(layers.values(), group)
        drift = text_drift(model, rows["old"]).kl
        own = [facts[key] for key, layer in layers.items() if layer in group and key in facts]
        yield Part(
            name,
            gain=base["new"] - losses["new"],
            forgetting=losses["old"] - base["old"],
            gain_lost=losses["new"] - complete["new"],
            forgetting_saved=complete["old"] - losses["old"],
            drift=drift,
            change=_change(own),
            effective_rank=sum(effective_rank(after - before) for before, after in own) / max(1, len(own)),
        )
    _switch(layers.values(), layers.values())


def grouped(layers: dict[str, Any]) -> dict[str, list[Any]]:
    """Layers by depth, then by the last part of their names.

    Args:
        layers: name -> layer.

    Example:
        >>> list(grouped({"m.layers.0.q": 1, "m.layers.0.v": 2, "m.layers.1.q": 3}))
        ['layer 0', 'layer 1', 'q', 'v']
    """
    found: dict[str, list[Any]] = {}
    for name, layer in layers.items():
        if (depth := DEPTH.search(name)) is not None:
            found.setdefault(f"layer {depth[1]}", []).append(layer)
    for name, layer in layers.items():
        found.setdefault(name.rpartition(".")[2], []).append(layer)
    return found


def _switch(layers: Any, on: Any) -> None:
    alive = {id(layer) for layer in on}
    for layer in layers:
        layer.set_scale("default", 1.0 if id(layer) in alive else 0.0)


def _losses(model: nn.Module, rows: dict[str, list[TokenRow]]) -> dict[str, float]:
    return {name: mean_loss(model, own).nats for name, own in rows.items()}


def _change(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    moved = sum(float((after - before).double().square().sum()) for before, after in pairs)
    size = sum(float(before.double().square().sum()) for before, _ in pairs)
    return (moved / size) ** 0.5 if size else 0.0
