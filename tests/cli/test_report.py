"""``orthotune report`` adds the adapter's layers to the page when there are some."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file

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


def test_another_adapter_beside_it(call: Callable, trained: Path) -> None:
    shutil.copytree(trained / "adapter", trained / "other/adapter")
    for home in (trained, trained / "other"):
        (home / "run.json").write_text(json.dumps(RECORD))
    done = call("report", trained, "--compare", trained / "other")
    assert done.exit_code == 0, done.stderr
    page = (trained / "report.html").read_text()
    assert "Distance from another adapter" in page and "mean angle between both" not in page  # they are the same
    numbers = load_file(trained / "other/adapter/adapter_model.safetensors")
    save_file({name: 2 * value for name, value in numbers.items()}, trained / "other/adapter/adapter_model.safetensors")
    assert call("report", trained, "--compare", trained / "other").exit_code == 0
    assert "mean angle between both" in (trained / "report.html").read_text()
    assert call("report", trained / "adapter", "--compare", trained / "other/adapter").exit_code == 0
    done = call("report", trained, "--compare", trained / "base")
    assert done.exit_code == 2 and "base is not an adapter" in done.stderr


def test_a_record_that_is_damaged(call: Callable, trained: Path) -> None:
    (trained / "run.json").write_text(json.dumps(RECORD | {"gain": "much"}))
    done = call("report", trained)
    assert done.exit_code == 2 and "the records in" in done.stderr and "Traceback" not in done.stderr
    assert not (trained / "report.html").exists()
