"""A process does not grow: not along training steps, not along adapters that come and go, and it warns once.

The long form, 2,000 steps and 200 lives with a picture, is ``python benchmarks/long_run.py``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.support.long_runs import Footprint, lives, training, watched

#: Python's caches add an object now and then; a leak of one small object a step, or of five a life, is above this.
SLACK = 25


def _flat(found: Sequence[Footprint]) -> None:
    """The second half holds what the first one held; what is made once is made in the first part."""
    warm, last = found[len(found) // 2], found[-1]
    assert last.tensors == warm.tensors, "live tensors"
    assert last.tensor_bytes == warm.tensor_bytes, "bytes of live tensors"
    assert last.files == warm.files, "open files"
    assert last.objects - warm.objects < SLACK, "Python's own objects"


@pytest.mark.parametrize("options", [{}, {"side": "out", "magnitude": True}, {"coft": True, "eps": 0.1}], ids=str)
def test_training_holds_what_it_held(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    _flat(watched(training(**options), count=60, every=10))


def test_adapters_that_came_and_went_leave_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _flat(watched(lives(tmp_path), count=12, every=2))


def test_a_step_warns_at_most_once() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as first:
        warnings.simplefilter("always")
        step = training()
        step()
    with warnings.catch_warnings(record=True) as later:
        warnings.simplefilter("always")  # not even what Python would keep to itself the second time
        for _ in range(20):
            step()
    assert not later, [str(warning.message) for warning in later]
    assert len({str(warning.message) for warning in first}) == len(first)
