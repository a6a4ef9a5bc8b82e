"""The base models that are loaded by name."""

from __future__ import annotations

from orthotune.operations.base_model import WORLD, place_of
from orthotune.worlds import text


def test_the_text_world_is_found_where_it_lies() -> None:
    assert place_of(WORLD) == text.MODEL
    assert (text.MODEL / "config.json").is_file()
