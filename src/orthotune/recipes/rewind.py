"""Choose the strengths at which a finished run is used, on held-out texts, and write the adapter at these.

A finished adapter mostly rotates farther than its task needs: at less than its full strength it gains nearly as much
and forgets less. One strength for all layers is found on a curve; one for each kind of layer, projection, depth or
layer is trained, with everything else frozen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from orthotune import PeftModel
from orthotune.errors import OrthotuneError, OutputError, RecipeError
from orthotune.files.json_file import read_json, write_json
from orthotune.files.output import new_folder, temporary_folder
from orthotune.metrics.text_loss import TokenRow
from orthotune.operations import rewind as files
from orthotune.quantized.loading_options import place
from orthotune.recipes.held_out import TextRunSettings, settings_of_run, tokenized_rows
from orthotune.recipes.settings import GENERATED
from orthotune.recipes.source_domain import LOOKED_AT
from orthotune.runs.directory import RunDirectory
from orthotune.runs.layer_strengths import LayerStrengths, layer_strengths
from orthotune.runs.optional_images import not_written
from orthotune.runs.quiet import quiet
from orthotune.runs.record import RunRecord
from orthotune.text.causal_model import choose_dtype, load_model, load_tokenizer
from orthotune.text.rewinding import By, Losses, Point, Rewinding, difference, groups_of, overlap
from orthotune.text.rewinding_plot import draw_rewinding
from orthotune.text.written_texts import read_texts, write_texts

Say = Callable[[str], None]
Rows = dict[str, list[TokenRow]]
#: Fewer held-out rows of a domain cannot be divided into those to choose by and those to measure on.
FEWEST = 4
#: Held-out tokens of each domain.
TOKENS = 8192
#: What the domains are called in messages.
DOMAINS = {"new": "target", "old": "source"}
#: Where a run directory keeps what was rewound.
FOLDER = "rewound"


class RewindSettings(BaseModel):
    """What decides a rewinding.

    Example:
        >>> RewindSettings(run="runs/sft-oft").by
        'one'
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    run: Path = Field(description="Run directory of a finished `orthotune train sft`.")
    by: By = Field("one", description="One strength for all layers, or one by kind, projection, depth or layer.")
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="Nats of gain that a nat of forgetting is worth.")
    forgetting: float | None = Field(None, description="At most so many nats per token may be forgotten.")
    new: str | None = Field(None, description="Held-out texts of the target domain; default: those of the run.")
    old: str | None = Field(
        None, description="Texts of the source domain, or generated: texts that the base writes. Default: those of the "
        "run, generated if it named none.",
    )  # fmt: skip
    tokens: Annotated[int, Field(ge=64)] = Field(
        TOKENS, description="Held-out tokens of each domain; half of them choose the strengths, half measure them."
    )
    steps: Annotated[int, Field(gt=0)] = Field(40, description="Steps in which strengths of groups are trained.")
    step_tokens: Annotated[int, Field(gt=0)] = Field(1024, description="Tokens of each domain in such a step.")
    rate: float = Field(0.05, gt=0, description="Learning rate of the strengths.")
    seed: int = 0
    output: Path | None = Field(None, description="Folder to write; default: RUN/rewound.")


class Rewound(BaseModel):
    """What a rewinding found, as in ``rewind.json``. Units: nats per token.

    Attributes:
        strengths: group -> strength; ``all`` for one strength.
        one: the best single strength.
        rows: measured on the other half of the held-out texts: the adapter as trained, at the best single strength,
            and as chosen; gain and forgetting of each.
        gain_given_up, forgetting_saved: of the chosen strengths against strength 1, each with the half of its 95 %
            interval.
        curve: the points of one strength, on the first half.
        overlap: share of the old rows that have a passage in common with the new texts.
        seconds: to choose the strengths, loading and writing not counted.
        notes: what a user should know.
    """

    strengths: dict[str, float]
    one: float
    rows: dict[str, dict[str, float]]
    gain_given_up: tuple[float, float]
    forgetting_saved: tuple[float, float]
    curve: list[dict[str, float]]
    tokens: dict[str, int]
    overlap: float
    seconds: float
    notes: list[str]
    settings: dict[str, Any]

    def table(self) -> list[str]:
        """The rows as lines of text."""
        heading = "rewound, nats per token on texts that nothing was chosen by:"
        twice = "one strength" if self.settings["by"] == "one" else None  # it is the chosen one
        return [heading] + [
            f"  {name:<12} gain {row['gain']:+.3f}  forgetting {row['forgetting']:+.3f}"
            for name, row in self.rows.items()
            if name != twice
        ]


def run(settings: RewindSettings, say: Say = print, *, overwrite: bool = False) -> Rewound:
    """Choose strengths for a finished run and write what was trained at these.

    Args:
        settings: the run, and how to choose.
        say: is given one line of text at a time.
        overwrite: replace what is at the output.

    Returns:
        The record that is also in ``rewind.json``. The output holds ``adapter`` too (``model`` after full finetuning),
        and ``rewind.png``, the curve.

    Raises:
        RecipeError: no finished run of a language model there, or too few held-out texts.
        ConfigError: the adapter holds parts that have no strength.
        DataError: texts that are missing or of another form.
        OutputError: the output exists already or cannot be written.

    Example:
        >>> run(RewindSettings(run="runs/sft-oft", by="kind")).strengths  # doctest: +SKIP
        {'attention': 0.55, 'mlp': 0.85}
    """
    trained = settings_of_run(settings.run)
    out = settings.output or settings.run / FOLDER
    with new_folder(out, overwrite=overwrite, named="output") as folder:
        with quiet():
            model, layers, base = _loaded(settings.run, trained)
            tokenizer = load_tokenizer(trained.model)
            rows, notes = _rows(model, tokenizer, settings, trained, folder)
        for note in notes:
            say(note)
        found, strengths = _chosen(settings, model, layers, rows, say)
        found = found.model_copy(update={"notes": notes + found.notes})
        for note in found.notes[len(notes) :]:
            say(note)
        if base is None:
            files.rewind(settings.run / "adapter", strengths, folder / "adapter")
        else:
            layers.set(strengths)
            model.save_pretrained(folder / "model")
            tokenizer.save_pretrained(folder / "model")
        write_json(folder / "rewind.json", found.model_dump(mode="json"))
        title, image = f"{settings.run.name}: strength after training", "rewind.png"
        if missing := not_written(lambda: draw_rewinding(found.curve, found.rows, folder / image, title), image):
            say(missing)
    return found


def finish(settings: TextRunSettings, say: Say = print) -> RunRecord:
    """Rewind a run that has just finished, as its setting ``rewind`` asks, and add the figures to its record.

    A run that was cut off here is finished by the next call. The run directory is locked meanwhile.

    Args:
        settings: of the run.
        say: called with each message.

    Returns:
        The record of the run, with ``rewound``.

    Raises:
        OutputError: another process is at work in the run directory, or another rewinding lies there.
        RecipeError: too few held-out texts.
    """
    directory = RunDirectory(settings.output)
    by = "one" if settings.rewind == "auto" else settings.rewind
    asked = RewindSettings.model_validate({"run": directory.path, "by": by, "seed": settings.seed})
    with directory.locked(say):
        record = RunRecord(**read_json(directory.record))
        if record.rewound is not None:
            return record
        try:
            found = _written(asked) or run(asked, say)
        except OrthotuneError:
            say(f"The run in {directory.path} is finished; rewinding failed.")
            raise
        for line in found.table():
            say(line)
        figures = {
            "by": by,
            "strengths": found.strengths,
            **found.rows["chosen"],
            "as_trained": found.rows["as trained"],
        }
        more = {"rewound": figures, "artifacts": record.artifacts | {FOLDER: FOLDER}}
        record = record.model_copy(update=more)
        write_json(directory.record, record.model_dump(mode="json"))
    return record


def _written(asked: RewindSettings) -> Rewound | None:
    """What an earlier call wrote, which was cut off before the run's record was written."""
    folder = asked.run / FOLDER
    if not folder.exists():
        return None
    path = folder / "rewind.json"
    found = Rewound(**read_json(path)) if path.is_file() else None
    own = {"run", "output"}
    if found is None or RewindSettings(**found.settings).model_dump(exclude=own) != asked.model_dump(exclude=own):
        raise OutputError(f"{folder}", got="another rewinding, or other files", do="Move it away, then start again")
    return found


def _loaded(run: Path, trained: TextRunSettings) -> tuple[Any, LayerStrengths, Any]:
    """The finished model, its strengths, and its base if it was trained in full."""
    dtype = choose_dtype(trained.dtype)
    base: Any = load_model(trained.model, dtype, trained.quantization)
    base = base if trained.quantization else base.to(place())
    if trained.method == "full":
        model = load_model(str(run / "model"), dtype).to(place())
        return model, layer_strengths(model, base=base), base
    with temporary_folder() as beside:
        model = PeftModel.from_pretrained(base, _exact(run / "adapter", trained, beside), is_trainable=True).eval()
    return model, layer_strengths(model), None


def _exact(adapter: Path, trained: TextRunSettings, beside: Path) -> Path:
    """The adapter, or, of a Neumann series, the nearest rotation, written into the folder ``beside``."""
    if trained.method != "lora" and read_json(adapter / "adapter_config.json").get("use_cayley_neumann"):
        # A series is no rotation: its strengths are those of the nearest rotation, which is what will be written.
        return files.rewind(adapter, 1.0, beside / "exact").out
    return adapter


def _rows(
    model: Any, tokenizer: Any, settings: RewindSettings, trained: TextRunSettings, folder: Path
) -> tuple[dict[str, Rows], list[str]]:
    """Held-out rows of either domain to choose by and to measure on, and what there is to say of them."""
    old = settings.old or trained.old_data or GENERATED
    asked = {"eval_data": settings.new or trained.eval_data, "old_data": "none" if old == GENERATED else old}
    found, training = tokenized_rows(
        model, tokenizer, trained.model_copy(update={**asked, "eval_tokens": settings.tokens}), LOOKED_AT
    )
    notes = []
    if old == GENERATED:
        if trained.method == "full":
            raise RecipeError("old=generated", got="a model that was trained in full", do="Name texts: old=FILE")
        length = min(trained.max_length, 256)
        count = max(2 * FEWEST, -(-settings.tokens // length))
        write_texts(model, tokenizer, folder / "old-texts.jsonl", length, settings.seed, count)
        found["old"] = read_texts(folder / "old-texts.jsonl")
        notes.append(f"source domain: {len(found['old'])} texts that the base wrote, old-texts.jsonl.")
    require_rows(found, {"new": "new (or eval_data of the run)", "old": "old"})
    halves = {domain: _halves(found[domain]) for domain in ("new", "old")}
    shared = overlap([*training, *found["new"]], found["old"])
    if shared:
        notes.append(
            f"{shared:.0%} of the old rows have a passage of 13 tokens in common with the new texts: the "
            "forgetting that is measured on these is too low."
        )
    return {
        "choose": {domain: one for domain, (one, _) in halves.items()},
        "measure": {domain: other for domain, (_, other) in halves.items()},
        "overlap": {"old": found["old"], "new": [*training, *found["new"]]},
    }, notes


def require_rows(found: Mapping[str, Sequence[TokenRow]], settings: Mapping[str, str]) -> None:
    """Refuse held-out texts that cannot be divided into those to choose by and those to measure on.

    Args:
        found: rows by domain.
        settings: domain -> the setting that names its texts, and what else the message says of it.

    Raises:
        RecipeError: too few rows of a domain.
    """
    for domain, key in settings.items():
        if len(found.get(domain, ())) < FEWEST:
            raise RecipeError(
                f"{key}: held-out texts of the {DOMAINS[domain]} domain", got=f"{len(found.get(domain, ()))} rows",
                needed=f"at least {FEWEST}: half of them choose, half measure",
                do=f"Name more texts: {key.partition(' ')[0]}=FILE",
            )  # fmt: skip


def _halves(rows: Sequence[TokenRow]) -> tuple[list[TokenRow], list[TokenRow]]:
    """The first and the second half: rows of one document stand beside each other and stay together."""
    return list(rows[: len(rows) // 2]), list(rows[len(rows) // 2 :])


def _chosen(
    settings: RewindSettings, model: Any, layers: LayerStrengths, rows: dict[str, Rows], say: Say
) -> tuple[Rewound, dict[str, float]]:
    began = time.monotonic()
    choosing = Rewinding(model, layers, rows["choose"])
    curve = choosing.curve(settings.weight)
    best = _best(curve, settings)
    chosen, groups = dict(best.strengths), groups_of(layers.names, "one")
    if settings.by != "one":
        groups = groups_of(layers.names, settings.by)
        start = best.strengths["all"] or 0.5
        chosen = choosing.train(
            groups, start, settings.weight, steps=settings.steps, tokens=settings.step_tokens, rate=settings.rate,
            seed=settings.seed, say=lambda step: say(f"strengths: step {step} of {settings.steps}")
            if step in (1, settings.steps) or step % 10 == 0 else None,
        )  # fmt: skip
        chosen = _within(choosing, chosen, groups, settings)
    seconds = time.monotonic() - began
    measuring = Rewinding(model, layers, rows["measure"])
    of_layers = {name: chosen[group] for name, group in groups.items()}
    single = dict.fromkeys(layers.names, best.strengths["all"])
    losses = {
        "as trained": measuring.measure(dict.fromkeys(layers.names, 1.0)),
        "one strength": measuring.measure(single),
        "chosen": measuring.measure(of_layers),
    }
    against = difference(losses["chosen"], losses["as trained"])
    saved = tuple(value if place else -value for place, value in enumerate(against["old"]))
    found = Rewound(
        strengths=chosen, one=best.strengths["all"],
        rows={name: _row(measuring.base, one) for name, one in losses.items()},
        gain_given_up=against["new"], forgetting_saved=(saved[0], saved[1]),
        curve=[{"strength": one.strengths["all"], "gain": one.gain, "forgetting": one.forgetting} for one in curve],
        tokens={domain: sum(len(row.input_ids) for part in ("choose", "measure") for row in rows[part][domain])
                for domain in ("new", "old")},
        overlap=overlap(rows["overlap"]["new"], rows["overlap"]["old"]), seconds=seconds,
        notes=_notes(against, best, settings), settings=settings.model_dump(mode="json"),
    )  # fmt: skip
    return found, of_layers


def _best(curve: Sequence[Point], settings: RewindSettings) -> Point:
    """The point that is worth most among those that forget no more than is allowed; the base forgets nothing."""
    limit = settings.forgetting
    allowed = [point for point in curve if limit is None or point.forgetting <= limit] or [curve[0]]
    return max(allowed, key=lambda point: point.worth(settings.weight))


def _within(
    choosing: Rewinding, chosen: dict[str, float], groups: Mapping[str, str], settings: RewindSettings
) -> dict[str, float]:
    """The trained strengths, all made smaller by one factor if they forget more than is allowed."""
    if settings.forgetting is None:
        return chosen
    for factor in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.25, 0.0):
        smaller = {group: round(t * factor, 4) for group, t in chosen.items()}
        if not factor or choosing.point(smaller, groups).forgetting <= settings.forgetting:
            return smaller
    return chosen


def _row(base: Losses, losses: Losses) -> dict[str, float]:
    (new_before, old_before), (new, old) = base.nats, losses.nats
    return {"gain": new_before - new, "forgetting": old - old_before}


def _notes(against: Mapping[str, tuple[float, float]], best: Point, settings: RewindSettings) -> list[str]:
    notes = []
    if best.strengths["all"] == 0 and settings.forgetting is not None:
        notes.append(f"no strength forgets at most {settings.forgetting:g}: the base is left.")
    elif best.strengths["all"] == 1 and settings.by == "one":
        notes.append("no other strength is worth more than the adapter as it was trained.")
    named = {"new": "target", "old": "source"}
    wide = {named[domain]: half for domain, (value, half) in against.items() if half > abs(value)}
    if wide and best.strengths["all"] != 1:
        notes.append(
            f"the difference on the {' and the '.join(wide)} domain lies within its 95 % interval of "
            f"±{max(wide.values()):.3f} nats: more held-out texts (tokens=...) would tell it from nothing."
        )
    return notes
