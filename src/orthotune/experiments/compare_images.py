"""An image job by several methods and learning rates, on the image world: what is learned, what is kept.

Every rate is run with the first seeds and scored on the validation split. For each method the best rate is run with all
seeds, and what these runs give is scored on the test split, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from orthotune.experiments import grid
from orthotune.experiments.compare_images_settings import CompareImagesSettings, contenders
from orthotune.experiments.image_frontier import draw_all
from orthotune.experiments.image_points import points, write_points
from orthotune.experiments.image_tasks import TASKS, Task
from orthotune.experiments.page import write_page
from orthotune.files.json_file import read_json, write_json
from orthotune.files.tables import write_table
from orthotune.runs.directory import RunDirectory
from orthotune.runs.metrics_log import read_lines
from orthotune.runs.record import RunRecord

#: Around the preset's rate: a factor of 16 in all, so that it bends on both sides.
SPREAD = (0.25, 0.5, 1.0, 2.0, 4.0)
#: How often runs are scored while they train: those of further seeds make the curves, a sweep needs the end alone.
POINTS = 3
TEST, BASE = "test-scores.json", "base-scores.json"
Row = dict[str, Any]


def run(settings: CompareImagesSettings, say: Callable[[str], None] = print) -> list[Row]:
    """Run what is not finished yet and return one row per run, the model without finetuning last.

    The output holds one directory per run, ``comparison.json``, ``comparison.csv``, images and ``report.html``. Run
    again after an interruption, it goes on where it was.

    Raises:
        OutputError: the output cannot be written, or a run in it was made with other settings.
    """
    home, task = RunDirectory(settings.output), TASKS[settings.task]
    base = _kept(home.path / BASE, lambda: {split: task.base(split) for split in ("validation", "test")})
    say(f"no finetuning: {_told(base['validation'], task)}")
    few, rest = settings.seeds[: settings.sweep_seeds], settings.seeds[settings.sweep_seeds :]
    rows = _runs(settings, task, list(_cells(settings, _rates(settings), few)), [], base, say)
    best = choose(rows, task.learned)
    say("chosen on the validation split: " + ", ".join(f"{method} {rate:g}" for method, rate in best.items()))
    chosen = {method: [rate] for method, rate in best.items()}
    rows = _runs(settings, task, list(_cells(settings, chosen, rest, POINTS)), rows, base, say)
    for row in rows:
        if row["learning_rate"] != best[row["method"]]:
            continue
        folder = settings.output / row["run"]
        scores = _kept(folder / TEST, lambda folder=folder: task.at(folder, "test", 1.0))  # type: ignore[misc]
        row |= {"chosen": True, **_prefixed("test", scores)}
        say(f"test, {row['run']}: {_told(scores, task)}")
    if settings.strengths != [1.0]:
        measured = points(task, settings.output, rows, settings.strengths, base, say)
        write_points(task, measured, settings.against, settings.output)
    _write(settings, task, rows, base)
    return [*rows, _base_row(base)]


def choose(rows: Sequence[Row], learned: str) -> dict[str, float]:
    """For each method the rate with the best mean validation score; among equals, what learned more, then the lower.

    Example:
        >>> tried = [{"method": "oft", "learning_rate": rate, "validation_score": 1 - rate} for rate in (0.5, 0.1)]
        >>> choose(tried, "score")
        {'oft': 0.1}
    """
    best: dict[str, float] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        rates = {row["learning_rate"] for row in rows if row["method"] == method}

        def worth(rate: float, method: str = method) -> tuple[float, float, float]:
            same = [row for row in rows if (row["method"], row["learning_rate"]) == (method, rate)]
            keys = ("validation_score", f"validation_{learned}")
            return (*(fmean(row[key] or 0.0 for row in same) for key in keys), -rate)  # type: ignore[return-value]

        best[method] = max(rates, key=worth)
    return best


def summary(rows: Sequence[Row]) -> dict[str, dict[str, tuple[float, float]]]:
    """For each method mean and standard deviation over the seeds of its chosen runs, by column; test scores first."""
    found: dict[str, dict[str, tuple[float, float]]] = {}
    for method in dict.fromkeys(row["method"] for row in rows):
        chosen = [row for row in rows if row["method"] == method and row["chosen"]]
        found[method] = {}
        for key in chosen[0] if chosen else ():
            values = [row[key] for row in chosen if isinstance(row[key], float)]
            if values and key != "learning_rate":
                found[method][key] = (fmean(values), stdev(values) if len(values) > 1 else 0.0)
    return found


def _rates(settings: CompareImagesSettings) -> dict[str, list[float]]:
    kind = TASKS[settings.task].settings
    return {
        name: rates or grid.rates_around(kind(**base).learning_rate, SPREAD)
        for name, (base, rates) in contenders(settings).items()
    }


def _cells(
    settings: CompareImagesSettings, rates: dict[str, list[float]], seeds: Sequence[int], points: int = 1
) -> Iterator[tuple[str, str, Any]]:
    """Name, method and settings of each run, which is scored ``points`` times while it trains."""
    task = TASKS[settings.task]
    kind = task.settings
    known = contenders(settings)
    for method, tried in rates.items():
        said, _ = known[method]
        # Samples are for looking at, before and after.
        steps = kind(**said).steps
        said = {"eval_every": -(-steps // points), "sample_every": steps} | said
        for rate in tried:
            for seed in seeds:
                name = f"{method}-lr{rate:g}-seed{seed}"
                # Processes beside each other must not write into one folder.
                together = task.shared(settings.output, seed) if settings.parallel == 1 else {}
                varied = {"learning_rate": rate, "seed": seed, "output": settings.output / name}
                yield name, method, kind(**{**together, **said, **varied})


def _runs(
    settings: CompareImagesSettings, task: Task, cells: list[tuple[str, str, Any]], rows: list[Row],
    base: dict[str, Any], say: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    rows = list(rows)
    found = grid.records(task.run, [(name, one) for name, _, one in cells], settings.parallel, lambda _: None)
    for number, ((_, method, _), (name, record)) in enumerate(zip(cells, found, strict=True), start=1):
        rows.append(_row(name, method, record))
        say(f"{number} of {len(cells)}: {name}: {_told(record.scores_after, task)}, {record.seconds:.0f} s")
        grid.write_comparison(settings.output, settings.task, settings, [*rows, _base_row(base)], axes=task.axes)
    return rows


def _row(name: str, method: str, record: RunRecord) -> Row:
    return {
        "run": name,
        "method": method,
        "learning_rate": record.settings["learning_rate"],
        "seed": record.settings["seed"],
        "chosen": False,
        "trainable_parameters": record.trainable_parameters,
        "steps": record.steps,
        **_prefixed("validation", record.scores_after),
        **record.weights.model_dump(),
        "train_seconds": record.train_seconds,
        "seconds": record.seconds,
    }


def _base_row(base: dict[str, Any]) -> Row:
    scores = {key: value for split, values in base.items() for key, value in _prefixed(split, values).items()}
    return {"run": "none", "method": "none", "chosen": True, "trainable_parameters": 0, "steps": 0, **scores}


def _write(settings: CompareImagesSettings, task: Task, rows: list[Row], base: dict[str, Any]) -> None:
    home, every = settings.output, [*rows, _base_row(base)]
    columns = dict.fromkeys(key for row in every for key in row)
    write_table(home / "comparison.csv", every, list(columns))
    means = summary(every)
    grid.write_comparison(home, settings.task, settings, every, summary=means, axes=task.axes)
    chosen = [row["run"] for row in rows if row["chosen"]]
    lines = {run: [line for line in read_lines(home / run / "metrics.jsonl") if task.kept in line] for run in chosen}
    draw_all(task, every, {run: found for run, found in lines.items() if len(found) > 2}, home)
    write_page(task, settings.model_dump(mode="json"), every, means, home)


def _kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What is in the file; made and written when it is not there."""
    if not path.is_file():
        write_json(path, make())
    return read_json(path)


def _prefixed(split: str, scores: dict[str, float]) -> dict[str, float]:
    return {f"{split}_{name}": value for name, value in scores.items()}


def _told(scores: dict[str, float], task: Task) -> str:
    return ", ".join(f"{name} {scores[name]:.3f}" for name in task.told if name in scores)
