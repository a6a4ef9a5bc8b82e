"""The table over transforms and kinds of layers on the page is that of the rosters."""

from __future__ import annotations

import inspect
from pathlib import Path

from orthotune.rotation.family_registry import FAMILY
from tests.support.transform_table import table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "transforms.md"


def test_the_page_has_the_table_of_the_rosters() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index(table()[0]) if table()[0] in lines else -1
    found = lines[start : start + len(table())] if start >= 0 else []
    assert found == table(), "Write it anew: python -m tests.support.transform_table"


def test_a_transform_is_a_file_that_can_be_read_at_once() -> None:
    lengths = {name: len(Path(inspect.getfile(kind)).read_text().splitlines()) for name, kind in FAMILY.items()}
    assert len({inspect.getfile(kind) for kind in FAMILY.values()}) == len(FAMILY)
    assert max(lengths.values()) <= 180, lengths  # as the page says
