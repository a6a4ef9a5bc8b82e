"""A missing library for drawing ends no run that was trained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orthotune.runs.optional_images import not_written

#: In a process of its own: what other tests have imported, and left of the import system, decides nothing here.
RUN = """
import json, sys
sys.modules["matplotlib"] = None
from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings

said = []
record = sft.run(
    SFTSettings(
        steps=1, batch_size=1, max_length=32, eval_every=1, old_data="none", eval_tokens=64, output=sys.argv[1]
    ),
    say=said.append,
    bar=False,
)
print(json.dumps({"artifacts": record.artifacts, "notes": list(record.notes), "said": said}))
"""


def test_a_run_without_matplotlib_is_complete(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr[-2000:]
    record = json.loads(out.stdout.splitlines()[-1])
    assert "curve" not in record["artifacts"] and not (tmp_path / "run" / "curve.png").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["artifacts"] == record["artifacts"]
    for place in (record["notes"], record["said"]):
        assert any("matplotlib is not installed" in line for line in place)


def test_another_missing_library_is_an_error() -> None:
    def draw() -> None:
        raise ModuleNotFoundError("No module named 'needed'", name="needed")

    with pytest.raises(ModuleNotFoundError, match="needed"):
        not_written(draw, "curve.png")
