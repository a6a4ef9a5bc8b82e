"""Tables are written complete and read back with the numbers of their lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.errors import DataError
from orthotune.files.tables import read_table, write_table


def test_a_table_is_read_back(tmp_path: Path) -> None:
    rows = [{"name": 'a, "b"\nc', "loss": 1.5}, {"name": "ä", "loss": None}]
    write_table(tmp_path / "a.csv", rows)
    assert read_table(tmp_path / "a.csv") == [(2, {"name": 'a, "b"\nc', "loss": "1.5"}), (3, {"name": "ä", "loss": ""})]
    write_table(tmp_path / "a.csv", [{"loss": 2}], ["name", "loss"])
    assert (tmp_path / "a.csv").read_bytes() == b"name,loss\r\n,2\r\n"
    write_table(tmp_path / "a.csv", [], ["name"])
    assert read_table(tmp_path / "a.csv") == []


def test_a_column_that_the_header_lacks_leaves_the_old_table(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"a": 1}])
    with pytest.raises(ValueError):
        write_table(tmp_path / "a.csv", [{"a": 1, "b": 2}], ["a"])
    assert read_table(tmp_path / "a.csv") == [(2, {"a": "1"})]


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest .*a\.csv. Found: no such file"):
        read_table(tmp_path / "a.csv", named="manifest")
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"a\.csv.*Needed: a table as CSV, in UTF-8"):
        read_table(tmp_path / "a.csv")
