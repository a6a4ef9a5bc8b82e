from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from orthotune.cli.main import app
from tests.support.tiny_text import save_model, texts, write_jsonl


def test_a_grid_is_run_and_shown(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", texts(24, "blue"))
    job = [f"model={save_model(tmp_path / 'model')}", f"data={data}", "steps=1", "max_length=32", "block_size=16"]
    grid = ["methods=[oft, lora]", "learning_rates={oft: [0.003], lora: [0.001]}", "--output", str(tmp_path / "grid")]
    result = CliRunner().invoke(app, ["compare", "sft", *job, *grid], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "2 of 2: lora-lr0.001-seed0" in result.output
    lines = [line for line in result.output.splitlines() if line.startswith("│")]
    assert [line.split()[1:4:2] for line in lines] == [["oft", "0.003"], ["lora", "0.001"]]
    assert (tmp_path / "grid" / "report.html").is_file()


def test_faults_are_worded() -> None:
    result = CliRunner().invoke(app, ["compare", "sft", "metods=[oft]"])
    assert result.exit_code == 2
    assert "Did you mean 'methods'?" in result.output


def test_faults_of_image_comparisons_are_worded() -> None:
    for task in ("subject", "control"):
        result = CliRunner().invoke(app, ["compare", task, "metods=[oft]"])
        assert result.exit_code == 2
        assert "Did you mean 'methods'?" in result.output
