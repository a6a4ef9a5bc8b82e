"""The tables in the docs are what the formats do."""

from __future__ import annotations

from tests.formats.format_table import PAGE, known_formats, tables, written


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "run: PYTHONPATH=src:. python -m tests.formats.format_table"


def test_every_format_is_in_the_table() -> None:
    found = tables()
    assert not [name for name in known_formats() if f"| {name} |" not in found]
