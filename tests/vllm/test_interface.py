"""The record of the engine's classes, which tests without the engine go by, is that of the engine."""

from __future__ import annotations

from tests.support import recorded_engine


def test_the_record_is_what_the_engine_has() -> None:
    assert recorded_engine.described() == recorded_engine.recorded()
