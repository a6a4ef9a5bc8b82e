"""What a run directory says of itself, while it is trained and afterwards."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import DataError, OrthotuneError
from orthotune.files.json_file import read_json
from orthotune.files.plain_text import plain
from orthotune.files.run_adapter import FINISHED, STARTED
from orthotune.report.gain import with_changes
from orthotune.report.records import METRICS, Records, read_parts

#: Most bytes at the end of a log that are shown.
TAIL = 16_000
#: Endings of the files of a run that are read for the page.
SHOWN = (".json", ".jsonl", ".png")
#: Parts of ``run.json`` that are looked into, and their types.
PARTS = {"settings": dict, "notes": list, "weights": dict, "scores_before": dict, "scores_after": dict}
#: Beyond it an integer is no count or measurement, and has no floating-point number.
LARGEST = 2**63
#: Scores of images that stand for what was learned and for what was kept, where no gain was measured.
AXES = (("subject_fidelity", "kept"), ("prompt_fidelity", "kept"), ("mask_iou", "kept"), ("word_fidelity", "kept"))


@dataclass(frozen=True)
class Facts:
    """One run.

    Attributes:
        records: what it wrote so far.
        settings: with which it was started.
        recipe: name in the registry; empty if unknown.
        fault: why its files could not be read; empty if they could.
    """

    records: Records
    settings: Mapping[str, Any]
    recipe: str
    fault: str = ""

    @property
    def step(self) -> int:
        """The last step in its metrics."""
        steps = [line["step"] for line in self.records.metrics if isinstance(line.get("step"), int)]
        return max(steps, default=0)

    @property
    def steps(self) -> int | None:
        """How many steps it has; None where its settings count epochs and it is not finished."""
        found = self.records.run.get("steps") or self.settings.get("steps")
        return found if isinstance(found, int) else None

    @property
    def seconds_left(self) -> float | None:
        """Time to its end at the pace so far; None before the pace is known."""
        timed = [line for line in self.records.metrics if isinstance(line.get("seconds"), int | float)]
        pace = seconds_per_step(timed)
        return None if pace is None or self.steps is None else max(0, self.steps - self.step) * pace

    @property
    def warnings(self) -> list[str]:
        """What the run noted, each once."""
        noted = [line["clipping"] for line in self.records.metrics if line.get("clipping")]
        notes = self.records.run.get("notes") or []
        return list(dict.fromkeys(str(note) for note in [*noted, *notes]))

    @property
    def advice(self) -> list[str]:
        """The warnings of the last look at the rotations, each with its remedy."""
        looks = [line["diagnosis"] for line in self.records.metrics if isinstance(line.get("diagnosis"), dict)]
        found = looks[-1].get("advice") if looks else None
        return [str(one) for one in found] if isinstance(found, list) else []

    def row(self, name: str) -> dict[str, Any]:
        """The run as a row of a comparison.

        Args:
            name: of the run; stands in the place of the method, so that every run has its own colour.
        """
        run = self.records.run
        changed = [line for line in with_changes(self.records.metrics) if "gain" in line or "forgetting" in line]
        last = changed[-1] if changed else {}
        row: dict[str, Any] = {
            "method": name, "learning_rate": self.settings.get("learning_rate"),
            "trainable_parameters": run.get("trainable_parameters"), "train_seconds": run.get("train_seconds"),
            "gain": run.get("gain", last.get("gain")), "forgetting": run.get("forgetting", last.get("forgetting")),
        }  # fmt: skip
        weights = run.get("weights")
        return row | _numbers(weights) | _numbers(run.get("scores_after"))


def read_facts(folder: Path) -> Facts:
    """What a run directory holds now; a damaged file is a fault that is shown, not an error.

    Args:
        folder: the run directory.
    """
    try:
        _check_links(folder)
        records = read_parts(folder)
        _check_parts(folder, records)
        settings = read_json(folder / STARTED) if (folder / STARTED).is_file() else records.run.get("settings") or {}
        _check_numbers(folder / STARTED, settings)
        recipe = str(records.run.get("recipe") or settings.get("recipe") or "")
        return Facts(records, settings, recipe)
    except (OrthotuneError, OSError) as fault:
        return Facts(Records(folder), {}, "", str(fault))


def _check_links(folder: Path) -> None:
    """Refuse a file of the run that is a link to a file elsewhere: the page would show that one."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        links = [entry.path for entry in entries if entry.is_symlink() and entry.name.endswith(SHOWN)]
    for link in map(Path, links):
        if not link.resolve().is_relative_to(folder.resolve()):
            raise DataError(str(link), got="a link to a file outside the run directory", needed="the file itself")


def _check_parts(folder: Path, records: Records) -> None:
    for key, kind in PARTS.items():
        if not isinstance(records.run.get(key) or kind(), kind):
            raise DataError(f"{folder / FINISHED}: {key}", got=type(records.run[key]).__name__, needed=kind.__name__)
    _check_numbers(folder / FINISHED, records.run)
    for line in records.metrics:
        _check_numbers(folder / METRICS, line)


def _check_numbers(path: Path, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise DataError(
                f"{path}: {key}", got=f"an integer of {value.bit_length()} bits", needed="a measured figure"
            )


def seconds_per_step(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean time of a step; None with fewer than two lines.

    Args:
        lines: of ``metrics.jsonl``, with ``step`` and ``seconds``.

    Example:
        >>> seconds_per_step([{"step": 0, "seconds": 0.0}, {"step": 10, "seconds": 5.0}])
        0.5
    """
    timed = [(line["step"], line["seconds"]) for line in lines if isinstance(line.get("step"), int)]
    if len(timed) < 2 or timed[-1][0] <= timed[0][0]:
        return None
    return float((timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0]))


def earlier_pace(runs: Sequence[Path], settings: Mapping[str, Any], recipe: str) -> tuple[Path, float] | None:
    """A finished run of the same model, batch and length of rows on this machine, and the seconds of its steps.

    Args:
        runs: run directories.
        settings: of the run that is to begin.
        recipe: its recipe.
    """
    same = ("model", "method", "batch_size", "gradient_accumulation", "max_length", "resolution", "keep")
    for folder in runs:
        if not (folder / FINISHED).is_file():
            continue
        facts = read_facts(folder)
        steps, seconds = facts.records.run.get("steps"), facts.records.run.get("train_seconds")
        if facts.recipe == recipe and steps and seconds and all(facts.settings.get(k) == settings.get(k) for k in same):
            return folder, float(seconds) / int(steps)
    return None


def tail(path: Path) -> str:
    """The end of a log, with control characters escaped; a line that was written over keeps its last state.

    Args:
        path: the log.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return ""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    return str(plain("\n".join(lines)))


def axes_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The scores that a comparison of image runs is plotted over; empty where the report knows them itself.

    Args:
        rows: of a comparison.
    """
    for learned, kept in AXES:
        if sum(learned in row and kept in row for row in rows) > 1:
            return {"learned": learned, "kept": kept}
    return {}


def _numbers(found: Any) -> dict[str, float]:
    entries = found.items() if isinstance(found, Mapping) else ()
    return {key: value for key, value in entries if isinstance(value, int | float) and not isinstance(value, bool)}
