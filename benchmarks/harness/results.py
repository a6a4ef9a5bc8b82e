"""Rows of the table, and the CSV file that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from harness.cells import Cell
from orthotune.errors import OrthotuneError
from orthotune.files.tables import read_table, write_table


@dataclass(frozen=True)
class Row:
    """One contender in one cell.

    Args:
        model, mode, hidden, tokens, layers, dtype, block_size: the cell.
        contender: who.
        median, p10, p90: time of a step divided by the frozen floor's in the same repetition.
        repetitions: how many such ratios.
        milliseconds: median time of a step, on a GPU only.
        saved_bytes: kept for the backward by autograd, in training only.
        peak_bytes: rise of the allocated memory during a step, on a GPU only.
        trained: trained numbers.
        device, device_name, threads, versions, orthotune, commit, load: what it was measured on; ``load`` is the mean
            number of running processes when the cell began: above ``threads``, others were at work.
    """

    model: str
    mode: str
    hidden: int
    tokens: int
    layers: int
    dtype: str
    block_size: int
    contender: str
    median: float
    p10: float
    p90: float
    repetitions: int
    milliseconds: float | None
    saved_bytes: int | None
    peak_bytes: int | None
    trained: int
    device: str
    device_name: str
    threads: int
    load: float | None
    versions: str
    orthotune: str
    commit: str

    @property
    def cell(self) -> Cell:
        """The cell that the row belongs to."""
        return Cell(**{field.name: getattr(self, field.name) for field in fields(Cell)})


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a CSV file, whole or not at all; what was not measured is empty."""
    write_table(path, map(asdict, rows), [field.name for field in fields(Row)])


def read_rows(path: Path) -> list[Row]:
    """The rows of a file that :func:`write_rows` wrote.

    Raises:
        OrthotuneError: the file is not there, a column is missing, or a value is no number where one belongs.
    """
    kinds = get_type_hints(Row)
    rows = []
    for line, values in read_table(path, error=OrthotuneError):
        try:
            rows.append(Row(**{name: _value(values[name], kind) for name, kind in kinds.items()}))
        except (KeyError, ValueError, TypeError) as error:
            said, needed = f"{path}, line {line}", "a row that `orthotune bench` wrote"
            raise OrthotuneError(said, got=str(error), needed=needed) from None
    return rows


def _value(text: str, kind: Any) -> Any:
    if kind is str:
        return text
    if kind in (int, float):
        return kind(text)
    plain = int if kind == (int | None) else float
    return plain(text) if text else None
