"""The chosen runs of an image comparison at other strengths: their frontiers, learned against forgotten.

Gain is how much more of the task is learned than the base model knows. Forgetting is the drift of pictures that are not
about the task where the task measures it, else the share of other prompts that are followed no longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orthotune.experiments.frontier import draw_frontier
from orthotune.experiments.image_tasks import Scores, Task
from orthotune.experiments.summary import chosen_ways, summary
from orthotune.files.json_file import read_json, write_json
from orthotune.files.tables import write_table
from orthotune.worlds.image_scores import Split

FILE = "strengths.json"
Row = dict[str, Any]


def points(
    task: Task,
    folder: Path,
    rows: Sequence[Row],
    strengths: Sequence[float],
    base: dict[str, Scores],
    say: Callable[[str], None],
) -> list[Row]:
    """A row for each chosen run of ``rows`` and strength; the test split is looked at where the validation split chose.

    What was scored before is read from the runs' folders below ``folder``.
    """
    found: list[Row] = []
    for row in (row for row in rows if row["chosen"] and row["method"] != "none"):
        for strength in strengths:
            scores = _scores(task, folder / row["run"], "validation", strength)
            found.append(_point(row, strength) | _gained(task, scores, base["validation"], ""))
        say(f"strengths of {row['run']}")
    chosen = chosen_ways(found)
    for point in found:
        point["chosen"] = (point["learning_rate"], point["strength"]) in chosen.get(point["method"], ())
        if point["chosen"]:
            scores = _scores(task, folder / point["run"], "test", point["strength"])
            point |= _gained(task, scores, base["test"], "test_")
    return found


def write_points(task: Task, found: list[Row], against: str, folder: Path) -> dict[str, Any]:
    """Write ``points.csv``, ``equal-gain.png`` and ``equal-gain.json``; the last one's content is returned."""
    columns = dict.fromkeys(key for row in found for key in row)
    columns |= dict.fromkeys(("test_gain", "test_forgetting"))
    write_table(folder / "points.csv", found, list(columns))
    draw_frontier(found, folder / "equal-gain.png", titles=(f"gain in {task.words[task.learned]}", _lost(task)))
    beside = summary(found, against)
    write_json(folder / "equal-gain.json", beside)
    return beside


def _lost(task: Task) -> str:
    return task.words["drift"] if "drift" in task.words else f"loss of {task.words[task.kept]}"


def _point(row: Row, strength: float) -> Row:
    kept = ("run", "method", "learning_rate", "seed", "trainable_parameters", "steps", "train_seconds")
    return {**{key: row[key] for key in kept}, "strength": strength, "chosen": False}


def _gained(task: Task, scores: Scores, base: Scores, prefix: str) -> Row:
    lost = scores["drift"] if "drift" in scores else base[task.kept] - scores[task.kept]
    own = {"gain": scores[task.learned] - base[task.learned], "forgetting": lost}
    return {prefix + key: value for key, value in (own | scores).items()}


def _scores(task: Task, run: Path, split: Split, strength: float) -> Scores:
    known: dict[str, Scores] = read_json(run / FILE) if (run / FILE).is_file() else {}
    name = f"{split} at {strength:g}"
    if name not in known:
        known[name] = task.at(run, split, strength)
        write_json(run / FILE, known)
    return known[name]
