"""``orthotune report`` adds the adapter's layers to the page when there are some."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

RECORD = {"recipe": "sft", "method": "oft", "settings": {"model": "m"}, "artifacts": {"adapter": "adapter"}}


def test_layers_come_from_the_adapter(call: Callable, trained: Path) -> None:
    (trained / "run.json").write_text(json.dumps(RECORD))
    done = call("report", trained)
    assert done.exit_code == 0, done.stderr
    assert f"report  {trained / 'report.html'}" in done.stdout
    assert "model.layers.1.self_attn.q_proj" in (trained / "report.html").read_text()


def test_page_does_without_an_adapter(call: Callable, trained: Path) -> None:
    (trained / "run.json").write_text(json.dumps(RECORD))
    shutil.rmtree(trained / "adapter")
    assert call("report", trained).exit_code == 0
    assert "Layer by layer" not in (trained / "report.html").read_text()


def test_folder_that_is_no_run(call: Callable, tmp_path: Path) -> None:
    done = call("report", tmp_path)
    assert done.exit_code == 2
    assert "not a finished run" in done.stderr
