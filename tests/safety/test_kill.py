"""A run that SIGKILL ends, whenever it does, and that is resumed, ends with the same bits as one left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kept_results import keep_result

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forks of one process")
def test_a_run_killed_at_random_moments_ends_with_the_same_parameters(tmp_path: Path) -> None:
    # one process start for all runs; `python benchmarks/kill_test.py --moments 20` is the long form
    words = ["--moments", "3", "--seed", "7", "--out", str(tmp_path / "kill.json")]
    place = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "benchmarks" / "kill_test.py"), *words],
        env=place, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "kill.json").read_text())
    runs = found["runs"]
    keep_result("kill-test", found)
    assert [run["same"] for run in runs] == [True] * 3
    assert all(run["killed"] for run in runs)
