from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def test_toy_names_what_it_made(call: Callable, tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    done = call("toy", "--steps", 1, "--patches", 8, "--out", tmp_path / "toy")
    assert done.exit_code == 0, done.stderr
    assert "magnitude" in done.stdout
    assert {path.name for path in (tmp_path / "toy").iterdir()} == {"toy.json", "toy.csv", "toy.png"}
