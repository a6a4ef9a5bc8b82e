from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from orthotune.cli.main import app
from tests.support.tiny_text import save_model, texts, write_jsonl


def test_a_fit_is_run_and_shown(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", texts(24, "blue"))
    job = [f"model={save_model(tmp_path / 'model')}", f"data={data}", "steps=2", "max_length=32", "block_size=16"]
    rotated = tmp_path / "rotated"
    first = CliRunner().invoke(app, ["train", "sft", *job, "--output", str(rotated)])
    assert first.exit_code == 0, first.output
    result = CliRunner().invoke(app, ["train", "magnitude", str(rotated)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "Magnitudes of 14 layers are fitted" in result.output and "target domain (learned)" in result.output
    home = tmp_path / "rotated-magnitude"
    assert (home / "adapter" / "adapter_model.safetensors").is_file() and (home / "report.html").is_file()


def test_faults_are_worded(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "magnitude", str(tmp_path / "nowhere")])
    assert result.exit_code == 2
    assert "no such folder" in result.output
