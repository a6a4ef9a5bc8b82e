"""A missing library for drawing ends no run that was trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.optional_images import not_written


class _Absent:
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_run_without_matplotlib_is_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_Absent(), *sys.meta_path])
    said: list[str] = []
    settings = SFTSettings(
        steps=1, batch_size=1, max_length=32, eval_every=1, old_data="none", eval_tokens=64, output=tmp_path / "run"
    )
    record = sft.run(settings, say=said.append, bar=False)
    assert "curve" not in record.artifacts and not (tmp_path / "run" / "curve.png").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["artifacts"] == record.artifacts
    for place in (record.notes, said):
        assert any("matplotlib is not installed" in line for line in place)


def test_another_missing_library_is_an_error() -> None:
    def draw() -> None:
        raise ModuleNotFoundError("No module named 'needed'", name="needed")

    with pytest.raises(ModuleNotFoundError, match="needed"):
        not_written(draw, "curve.png")
