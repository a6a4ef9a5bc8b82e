"""Read the records that a run or a comparison wrote into its folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.files.json_file import complete_json_lines, read_json, read_json_list
from orthotune.files.run_adapter import STOPPED

RUN, COMPARISON, SAMPLES, METRICS = "run.json", "comparison.json", "samples.json", "metrics.jsonl"


@dataclass(frozen=True)
class Records:
    """The records of one folder; records that were not written are empty.

    Args:
        folder: the folder, as the user named it.
        run: ``run.json``, or ``stopped.json`` of a run that a signal stopped: settings, results, versions.
        comparison: ``comparison.json``: one row for each run.
        samples: texts before and after training, or the images and texts generated at each step.
        images: PNG files by name without suffix (``curve``, ``frontier``).
        adapter: output of ``orthotune inspect --json`` for the adapter.
        metrics: the lines of ``metrics.jsonl``.
        compared: output of ``orthotune inspect --compare --json`` for two adapters.
    """

    folder: Path
    run: Mapping[str, Any] = field(default_factory=dict)
    comparison: Mapping[str, Any] = field(default_factory=dict)
    samples: list[Mapping[str, Any]] = field(default_factory=list)
    images: Mapping[str, Path] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)
    metrics: list[Mapping[str, Any]] = field(default_factory=list)
    compared: Mapping[str, Any] = field(default_factory=dict)


def read_records(
    folder: str | Path, adapter: Mapping[str, Any] | None = None, compared: Mapping[str, Any] | None = None
) -> Records:
    """The records in the folder of a run or of a comparison.

    Args:
        folder: output folder of a run or of a comparison.
        adapter: output of ``orthotune inspect --json`` for the adapter, if there is one.
        compared: output of ``orthotune inspect --compare --json`` for two adapters.

    Raises:
        DataError: the folder holds neither, or a record cannot be read.

    Example:
        >>> read_records("runs/demo").run["gain"]  # doctest: +SKIP
        0.41
    """
    folder = Path(folder)
    found = read_parts(folder, adapter, compared)
    if not found.run and not found.comparison and not adapter:
        raise DataError(
            f"{folder} is not a finished run",
            got=f"neither {RUN} nor {COMPARISON}" if folder.is_dir() else "no such folder",
            do="Name the output folder of `orthotune train` or `orthotune compare`",
        )
    return found


def read_parts(
    folder: Path, adapter: Mapping[str, Any] | None = None, compared: Mapping[str, Any] | None = None
) -> Records:
    """The records that a folder holds so far, as of a run that is not finished; none of them is required.

    Args:
        folder: as the user named it.
        adapter: output of ``orthotune inspect --json`` for the adapter, if there is one.
        compared: output of ``orthotune inspect --compare --json`` for two adapters.

    Raises:
        DataError: a record cannot be read.
    """
    run, comparison = _read(folder / RUN, {}) or _read(folder / STOPPED, {}), _read(folder / COMPARISON, {})
    images = {path.stem: path for path in sorted(folder.glob("*.png"))}
    samples: list[Mapping[str, Any]] = [row for row in _read(folder / SAMPLES, []) if isinstance(row, dict)]
    # The last line of an interrupted run may be incomplete.
    metrics: list[Mapping[str, Any]] = [*complete_json_lines(folder / METRICS)]
    return Records(folder, run, comparison, samples, images, adapter or {}, metrics, compared or {})


def _read(path: Path, empty: Any) -> Any:
    if not path.is_file():
        return empty
    read = read_json if isinstance(empty, dict) else read_json_list
    return read(path, do="Run the training again")
