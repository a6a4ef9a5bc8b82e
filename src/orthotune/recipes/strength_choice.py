"""Choosing strengths for a finished run of any kind: the settings, the search, the figures, the record of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from orthotune.errors import OrthotuneError, OutputError
from orthotune.files.json_file import read_json, write_json
from orthotune.files.run_adapter import REWOUND
from orthotune.formats.peft.fields import spec_of_fields
from orthotune.operations import rewind as files
from orthotune.rotation.family_registry import family_of
from orthotune.runs.directory import RunDirectory
from orthotune.runs.record import RunRecord
from orthotune.runs.rewinding import By, Losses, Point, Rewinding, difference, groups_of

Say = Callable[[str], None]
#: Where a run directory keeps what was rewound.
FOLDER = "rewound"


class ChoiceSettings(BaseModel):
    """What decides a rewinding, of whatever kind the run is.

    Example:
        >>> ChoiceSettings(run="runs/sft-oft").by
        'one'
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    run: Path = Field(description="Run directory of a finished training.")
    by: By = Field("one", description="One strength for all layers, or one by kind, projection, depth or layer.")
    weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="Gain that as much forgetting is worth.")
    forgetting: float | None = Field(None, description="At most so much may be forgotten.")
    steps: Annotated[int, Field(gt=0)] = Field(40, description="Steps in which strengths of groups are trained.")
    rate: float = Field(0.05, gt=0, description="Learning rate of the strengths.")
    seed: int = 0
    output: Path | None = Field(None, description="Folder to write; default: RUN/rewound.")


class Rewound(BaseModel):
    """What a rewinding found, as in ``rewind.json``. Units: those of ``unit``.

    Attributes:
        strengths: group -> strength; ``all`` for one strength.
        one: the best single strength.
        rows: measured on the other half of the held-out texts: the adapter as trained, at the best single strength,
            and as chosen; gain and forgetting of each.
        gain_given_up, forgetting_saved: of the chosen strengths against strength 1, each with the half of its 95 %
            interval.
        curve: the points of one strength, on the first half.
        tokens: held-out tokens of each domain, of a language model.
        draws: noise draws of each domain, of an image model.
        overlap: share of the old rows that have a passage in common with the new texts.
        seconds: to choose the strengths, loading and writing not counted.
        notes: what a user should know.
        scores: row -> name -> score of generated images, where the run has scores.
    """

    strengths: dict[str, float]
    one: float
    rows: dict[str, dict[str, float]]
    gain_given_up: tuple[float, float | None]
    forgetting_saved: tuple[float, float | None]
    curve: list[dict[str, float]]
    tokens: dict[str, int] = {}
    draws: dict[str, int] = {}
    overlap: float = 0.0
    seconds: float
    notes: list[str]
    settings: dict[str, Any]
    scores: dict[str, dict[str, float]] = {}
    unit: str = "nats per token"

    def table(self) -> list[str]:
        """The rows as lines of text."""
        heading = f"rewound, {self.unit}, on data that nothing was chosen by:"
        twice = "one strength" if self.settings["by"] == "one" else None  # it is the chosen one
        return [heading] + [
            f"  {name:<12} gain {row['gain']:+.3f}  forgetting {row['forgetting']:+.3f}"
            for name, row in self.rows.items()
            if name != twice
        ]


def finish_run(directory: RunDirectory, asked: ChoiceSettings, run: Callable[[], Rewound], say: Say) -> RunRecord:
    """Rewind a run that has just finished and add the figures to its record; a run that was cut off here is finished.

    The run directory is locked meanwhile.

    Args:
        directory: of the run.
        asked: the settings of the rewinding.
        run: makes it.
        say: called with each message.

    Returns:
        The record of the run, with ``rewound``.

    Raises:
        OutputError: another process is at work in the run directory, or another rewinding lies there.
        RecipeError: too little held-out data.
    """
    with directory.locked(say):
        record = RunRecord(**read_json(directory.record))
        if record.rewound is not None:
            return record
        try:
            found = _written(asked) or run()
        except OrthotuneError:
            say(f"The run in {directory.path} is finished; rewinding failed.")
            raise
        for line in found.table():
            say(line)
        figures = {
            "by": asked.by,
            "strengths": found.strengths,
            **found.rows["chosen"],
            "as_trained": found.rows["as trained"],
        }
        more = {"rewound": figures, "artifacts": record.artifacts | {FOLDER: FOLDER}}
        record = record.model_copy(update=more)
        write_json(directory.record, record.model_dump(mode="json"))
    return record


def _written(asked: ChoiceSettings) -> Rewound | None:
    """What an earlier call wrote, which was cut off before the run's record was written."""
    folder = asked.run / FOLDER
    if not folder.exists():
        return None
    path = folder / REWOUND
    found = Rewound(**read_json(path)) if path.is_file() else None
    own = {"run", "output"}
    if found is None or type(asked)(**found.settings).model_dump(exclude=own) != asked.model_dump(exclude=own):
        raise OutputError(f"{folder}", got="another rewinding, or other files", do="Move it away, then start again")
    return found


def choose(
    settings: ChoiceSettings, halves: Mapping[str, Callable[[], Rewinding]], amount: int, say: Say
) -> tuple[Rewound, dict[str, float]]:
    """Search the strengths on one half of the held-out data and measure them on the other.

    Args:
        settings: of the rewinding.
        halves: makes the losses on the half of the data that chooses, ``choose``, and on the other, ``measure``.
        amount: tokens or images of each domain in a step in which strengths of groups are trained.
        say: called with each message.

    Returns:
        What was found, and layer -> strength.
    """
    began = time.monotonic()
    search = halves["choose"]()
    names = search.layers.names
    curve = search.curve(settings.weight)
    best = _best(curve, settings)
    chosen, groups = dict(best.strengths), groups_of(names, "one")
    if settings.by != "one":
        groups = groups_of(names, settings.by)
        start = best.strengths["all"] or 0.5
        chosen = search.train(
            groups, start, settings.weight, steps=settings.steps, amount=amount, rate=settings.rate, seed=settings.seed,
            say=lambda step: say(f"strengths: step {step} of {settings.steps}")
            if step in (1, settings.steps) or step % 10 == 0 else None,
        )  # fmt: skip
        chosen = _within(search, chosen, groups, settings)
    seconds = time.monotonic() - began
    held_out = halves["measure"]()
    of_layers = {name: chosen[group] for name, group in groups.items()}
    single = dict.fromkeys(names, best.strengths["all"])
    losses = {
        "as trained": held_out.measure(dict.fromkeys(names, 1.0)),
        "one strength": held_out.measure(single),
        "chosen": held_out.measure(of_layers),
    }
    against = difference(losses["chosen"], losses["as trained"])
    found = Rewound(
        strengths=chosen, one=best.strengths["all"],
        rows={name: _row(held_out.base, one) for name, one in losses.items()},
        gain_given_up=_finite(against["new"]), forgetting_saved=_finite((-against["old"][0], against["old"][1])),
        curve=[{"strength": one.strengths["all"], "gain": one.gain, "forgetting": one.forgetting} for one in curve],
        seconds=seconds, notes=_notes(against, best, settings), settings=settings.model_dump(mode="json"),
    )  # fmt: skip
    return found, of_layers


def exact_adapter(adapter: Path, method: str, beside: Path) -> Path:
    """An adapter whose strengths can be chosen: of a Neumann series, the nearest rotation; of stages, blocks.

    A series is no rotation: its strengths are those of the nearest rotation, which is what will be written. The powers
    of a product of stages are rotations of larger blocks, which is what will be written, too.

    Args:
        adapter: the folder of the adapter.
        method: of the run.
        beside: a folder for the nearest rotation, or for the blocks.
    """
    config = {} if method == "lora" else read_json(adapter / "adapter_config.json")
    kind = None if method == "lora" else family_of(str(config.get("transform") or "blocks"))
    stages = kind is not None and kind.powers_are_blocks(spec_of_fields(config))
    if config.get("use_cayley_neumann") or stages:
        return files.rewind(adapter, 1.0, beside / "exact").out
    return adapter


def _best(curve: Sequence[Point], settings: ChoiceSettings) -> Point:
    """The point that is worth most among those that forget no more than is allowed; the base forgets nothing."""
    limit = settings.forgetting
    allowed = [point for point in curve if limit is None or point.forgetting <= limit] or [curve[0]]
    return max(allowed, key=lambda point: point.worth(settings.weight))


def _within(
    choosing: Rewinding, chosen: dict[str, float], groups: Mapping[str, str], settings: ChoiceSettings
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
    (new_before, old_before), (new, old) = base.means, losses.means
    return {"gain": new_before - new, "forgetting": old - old_before}


def _finite(value: tuple[float, float]) -> tuple[float, float | None]:
    return value[0], value[1] if math.isfinite(value[1]) else None


def _notes(against: Mapping[str, tuple[float, float]], best: Point, settings: ChoiceSettings) -> list[str]:
    notes = []
    if best.strengths["all"] == 0 and settings.forgetting is None:
        notes.append("no strength is worth more than the base: what is gained is less than what is forgotten.")
    elif best.strengths["all"] == 0:
        notes.append(f"no strength gains anything and forgets at most {settings.forgetting:g}: the base is left.")
    elif best.strengths["all"] == 1 and settings.by == "one":
        notes.append("no other strength is worth more than the adapter as it was trained.")
    named = {"new": "target", "old": "source"}
    wide = {named[domain]: half for domain, (value, half) in against.items() if half > abs(value)}
    if wide and best.strengths["all"] != 1:
        notes.append(
            f"the difference on the {' and the '.join(wide)} domain lies within its 95 % interval of "
            f"±{max(wide.values()):.3g}: more held-out data (tokens=..., draws=...) would tell it from nothing."
        )
    return notes
