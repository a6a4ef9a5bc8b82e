"""A finished text run measured again: at other strengths of its adapter, on other held-out data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from peft.utils.other import ModulesToSaveWrapper
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from orthotune import PeftModel
from orthotune.errors import RecipeError
from orthotune.files.json_file import read_json, write_json
from orthotune.metrics.text_loss import mean_loss
from orthotune.quantized.loading_options import place
from orthotune.recipes.held_out import held_out_rows
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.quiet import quiet
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.evaluation_cost import cost_sentence

Losses = dict[str, float]
#: Losses of bases, by model and tokens: the runs of a comparison have one base, which is measured once.
_BASES: dict[tuple[str, str | None, str], Losses] = {}


class Again(BaseModel):
    """A request to measure one finished run.

    Args:
        run: the settings of the run.
        strengths: of its adapter; 1 is the adapter as trained, 0 the base. For full finetuning, and for modules that
            were trained in full beside an adapter, points on the straight line from the base's weights to the trained
            ones.
        eval_data, old_data: held-out data of the target and the source domain; None for those of the run.
        file: name of the record within the run directory.
    """

    model_config = ConfigDict(extra="forbid")

    run: SFTSettings
    strengths: list[float]
    eval_data: str | None = None
    old_data: str | None = None
    file: str


def measure(settings: Again, say: Callable[[str], None] = print, *, bar: bool = True) -> dict[float, Losses]:
    """The losses of a finished run at each strength and at strength 0, the base.

    Losses that were measured before are read from the run directory.

    Args:
        settings: the run, the strengths, and the data if they are not the run's.
        say: called with messages: what the measurement will cost.
        bar: show a progress bar; there is none.

    Returns:
        strength -> ``{"new": loss, "old": loss}`` on the target and the source domain, in nats per token.
    """
    path = settings.run.output / settings.file
    data = {"eval_data": settings.eval_data, "old_data": settings.old_data}
    record = read_json(path) if path.is_file() else {}
    # Losses on other data are not those that are asked for.
    same = bool(record) and all(record.get(key) == name for key, name in data.items())
    known: dict[str, Losses] = record["losses"] if same else {}
    asked = dict.fromkeys([0.0, *settings.strengths])
    missing = [t for t in asked if repr(t) not in known]
    if missing:
        with quiet():
            known |= _measured(settings, missing, say)
        write_json(path, {**data, "losses": known})
    return {t: known[repr(t)] for t in asked}


def _measured(again: Again, strengths: list[float], say: Callable[[str], None]) -> dict[str, Losses]:
    settings = again.run.model_copy(
        update={k: v for k, v in (("eval_data", again.eval_data), ("old_data", again.old_data)) if v}
    )
    at = _at_strength(settings)
    rows = held_out_rows(at(1.0), load_tokenizer(settings.model), settings)
    base = (settings.model, settings.quantization, sha256(repr(rows).encode()).hexdigest())
    found = {repr(0.0): _BASES[base]} if 0.0 in strengths and base in _BASES else {}
    left = [t for t in strengths if repr(t) not in found]
    fewer = "eval_tokens=N measures fewer, strengths=[1.0] once a run"
    if left and (sentence := cost_sentence(at(1.0), rows, len(left), fewer=fewer)):
        say(sentence)
    found |= {repr(t): {name: mean_loss(at(t), own).nats for name, own in rows.items()} for t in left}
    if 0.0 in strengths:
        _BASES[base] = found[repr(0.0)]
    return found


def _at_strength(settings: SFTSettings) -> Callable[[float], nn.Module]:
    """A function from a strength to the finished model at that strength."""
    base: Any = load_model(settings.model, torch.float32, settings.quantization)
    if not settings.quantization:  # a quantized model stays on the device that it was loaded to
        base = base.to(place())
    if settings.method == "full":
        return _Line(base, load_model(str(settings.output / "model"), torch.float32).to(place()))
    biases = [(p, p.detach().clone()) for name, p in base.named_parameters() if name.endswith("bias")]
    model: Any = PeftModel.from_pretrained(base, settings.output / "adapter").eval()
    if settings.method == "lora":
        if settings.quantization:
            raise RecipeError("strengths of a LoRA on a quantized model", needed="strengths=[1], or a plain model")
        # On merged weights: LoRA's own scale does not change the magnitudes of DoRA.
        return _Line(load_model(settings.model, torch.float32).to(place()), model.merge_and_unload())

    in_full = [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    lines: list[Callable[[float], Any]] = [_Line(m.original_module, m.modules_to_save["default"]) for m in in_full]
    lines += [partial(_along, p, start, p.detach().clone()) for p, start in biases if not torch.equal(p, start)]

    def at(strength: float) -> nn.Module:
        # set_scale changes rotations alone: what was trained in full beside them goes along a straight line.
        model.set_scale("default", strength)
        for line in lines:
            line(strength)
        return model

    return at


class _Line:
    """The straight line between the weights of two models, written into those of ``trained``."""

    def __init__(self, base: nn.Module, trained: nn.Module) -> None:
        self.model = trained
        self.ends = {
            name: (parameter, dict(base.named_parameters())[name].detach().clone(), parameter.detach().clone())
            for name, parameter in trained.named_parameters()
        }

    def __call__(self, strength: float) -> nn.Module:
        for parameter, start, end in self.ends.values():
            _along(parameter, start, end, strength)
        return self.model


@torch.no_grad()
def _along(parameter: nn.Parameter, start: Tensor, end: Tensor, strength: float) -> None:
    parameter.copy_(end if strength == 1 else torch.lerp(start, end, strength))
