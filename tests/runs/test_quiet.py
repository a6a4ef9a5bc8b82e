from __future__ import annotations

import logging

import datasets
import pytest

from orthotune.runs.quiet import HUSHED, quiet


def test_everything_is_as_before_afterwards() -> None:
    bars, levels = datasets.are_progress_bars_disabled(), [logging.getLogger(name).level for name in HUSHED]
    with pytest.raises(RuntimeError), quiet():
        assert datasets.are_progress_bars_disabled()
        assert all(logging.getLogger(name).level == logging.ERROR for name in HUSHED)
        raise RuntimeError
    assert datasets.are_progress_bars_disabled() == bars
    assert [logging.getLogger(name).level for name in HUSHED] == levels
