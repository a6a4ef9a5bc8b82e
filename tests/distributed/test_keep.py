"""Outputs kept on old texts by two processes: rows are shared out, and what comes out is one process's."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.distributed.jobs import KEEPING
from tests.distributed.test_training import CURVE, NUMBERS, lines

pytestmark = pytest.mark.slow

SHARED = [name for name in KEEPING if name != "keep"]


@pytest.mark.parametrize("name", SHARED)
def test_the_penalty_is_that_of_one_process(runs: Path, name: str) -> None:
    alone, shared = lines(runs / "keep"), lines(runs / name)
    for key in ("train_loss", "keep_nats", "old_nats"):
        expected = [line[key] for line in alone if key in line]
        # A divergence of 1e-4 is a difference of float32 numbers near 1: the 1e-7 of their rounding stands as it is.
        assert [line[key] for line in shared if key in line] == pytest.approx(expected, rel=CURVE, abs=2e-7)
    assert alone[6]["keep_nats"] > 1e-4
    assert alone[6]["train_loss"] != lines(runs / "none")[6]["train_loss"]


@pytest.mark.parametrize("name", SHARED)
def test_the_saved_adapter_is_that_of_one_process(runs: Path, name: str) -> None:
    alone, shared = (load_file(runs / run / "adapter" / "adapter_model.safetensors") for run in ("keep", name))
    assert alone.keys() == shared.keys()
    assert max(float((alone[key] - shared[key]).abs().max()) for key in alone) < NUMBERS
