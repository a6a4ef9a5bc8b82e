"""What a run or a comparison wrote into its folder, read back as plain values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthotune.errors import DataError

RUN, COMPARISON, SAMPLES, METRICS = "run.json", "comparison.json", "samples.json", "metrics.jsonl"


@dataclass(frozen=True)
class Records:
    """The records of one folder; what was not written is empty.

    Args:
        folder: where they lie, as the user named it.
        run: ``run.json``: settings, results, versions.
        comparison: ``comparison.json``: one row for each run.
        samples: texts before and after training, or what was drawn or written at a step.
        pictures: PNG files by name without suffix (``curve``, ``frontier``).
        adapter: what ``orthotune inspect --json`` says of the adapter.
        metrics: the lines of ``metrics.jsonl``.
        compared: what ``orthotune inspect --compare --json`` says of two adapters.
    """

    folder: Path
    run: Mapping[str, Any] = field(default_factory=dict)
    comparison: Mapping[str, Any] = field(default_factory=dict)
    samples: list[Mapping[str, Any]] = field(default_factory=list)
    pictures: Mapping[str, Path] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[Mapping[str, Any]] = field(default_factory=list)
    compared: Mapping[str, Any] = field(default_factory=dict)


def read_records(
    folder: str | Path, adapter: Mapping[str, Any] | None = None, compared: Mapping[str, Any] | None = None
) -> Records:
    """The records in the folder of a run or of a comparison.

    Raises:
        DataError: the folder holds neither, or a record cannot be read.

    Example:
        >>> read_records("runs/demo").run["gain"]  # doctest: +SKIP
        0.41
    """
    folder = Path(folder)
    run, comparison = _read(folder / RUN, {}), _read(folder / COMPARISON, {})
    if not run and not comparison and not adapter:
        raise DataError(
            f"{folder} is not a finished run",
            got=f"neither {RUN} nor {COMPARISON}" if folder.is_dir() else "no such folder",
            do="Name the output folder of `orthotune train` or `orthotune compare`",
        )
    pictures = {path.stem: path for path in sorted(folder.glob("*.png"))}
    samples: list[Mapping[str, Any]] = [row for row in _read(folder / SAMPLES, []) if isinstance(row, dict)]
    metrics = _lines(folder / METRICS)
    return Records(folder, run, comparison, samples, pictures, adapter or {}, metrics, compared or {})


def _lines(path: Path) -> list[Mapping[str, Any]]:
    """The lines that can be read: a run that was cut off may have left half a line."""
    found: list[Mapping[str, Any]] = []
    try:
        texts = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        for text in texts:
            line = json.loads(text)
            found += [line] if isinstance(line, dict) else []
    except (OSError, ValueError):
        return found
    return found


def _read(path: Path, empty: Any) -> Any:
    if not path.is_file():
        return empty
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read", got=str(error), do="Run the training again") from error
    if not isinstance(content, type(empty)):
        raise DataError(f"{path} is no record", got=type(content).__name__, needed=type(empty).__name__)
    return content
