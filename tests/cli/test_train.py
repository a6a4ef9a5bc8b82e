from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.cli.recipe_words import recipe_and_settings
from tests.support.tiny_text import save_model, texts, write_jsonl


def test_a_recipe_comes_first_or_not_at_all(tmp_path: Path) -> None:
    assert recipe_and_settings(["mine.yaml", "steps=5"]) == (Path("mine.yaml"), ["steps=5"])
    assert recipe_and_settings(["steps=5", "data=a.yaml"]) == (None, ["steps=5", "data=a.yaml"])
    assert recipe_and_settings([]) == (None, [])
    odd = tmp_path / "a=b.yaml"
    odd.touch()
    assert recipe_and_settings([str(odd)]) == (odd, [])


def test_a_recipe_is_trained_and_reported(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", texts(24, "blue"))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        f"model: {save_model(tmp_path / 'model')}\ndata: {data}\nsteps: 9\nmax_length: 32\nblock_size: 16\n"
    )
    words = [str(recipe), "steps=2", "old_data=none", "--method", "coft", "--output", str(tmp_path / "run")]
    result = CliRunner().invoke(app, ["train", "sft", *words])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["steps"], record["method"]) == (2, "coft")
    assert "target domain (learned)" in result.output and "not measured" in result.output
    assert (tmp_path / "run" / "report.html").is_file()

    again = CliRunner().invoke(app, ["train", "sft", *words])
    assert again.exit_code == 2
    assert "a finished run. Pass output=PATH for another one, or resume=auto to keep this one" in again.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stpes=2"], "command line: unknown key 'stpes'. Did you mean 'steps'?"),
        (["--method", "ofd"], "command line: method='ofd'"),
        (["none.yaml"], "recipe none.yaml. Found: no such file or directory"),
    ],
)
def test_faults_are_worded(words: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["train", "sft", *words])
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_answers_are_printed_beside_the_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path / "model")
    data, old = (write_jsonl(tmp_path / f"{name}.jsonl", texts(4, name)) for name in ("new", "old"))
    few = [{"question": "1 + 1?", "kind": "arithmetic", "answers": ["2"]}]
    monkeypatch.setattr("orthotune.metrics.questions.QUESTIONS", write_jsonl(tmp_path / "few.jsonl", few))
    words = [f"model={tmp_path / 'model'}", f"data={data}", f"old_data={old}", f"output={tmp_path / 'run'}", "steps=1",
             "batch_size=2", "max_length=32", "block_size=8", "answers=true"]  # fmt: skip
    done = CliRunner().invoke(app, ["train", "sft", *words])
    assert done.exit_code == 0, done.stderr
    for shown in ("source domain (forgotten)", "scores", "answers_arithmetic", "answers_nats"):
        assert shown in done.stdout
    assert "validation split" not in done.stdout
