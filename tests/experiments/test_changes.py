"""What a finished run changed: a tiny run measured by hand, after adapters and after full finetuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.experiments.changes import changes_of
from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from tests.support.tiny_text import texts, write_jsonl


@pytest.mark.parametrize("method", ["oft", "full"])
def test_changes_of_a_run(method: str, model_path: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "new.jsonl", texts(40, "blue"))
    old = write_jsonl(tmp_path / "old.jsonl", texts(8, "RED-"))
    settings = SFTSettings(
        model=str(model_path), method=method, data=str(data), old_data=str(old), steps=6, learning_rate=2e-2,
        max_length=64, eval_every=6, output=tmp_path / "run",
    )  # fmt: skip
    record = sft.run(settings, say=lambda line: None, bar=False)
    found = changes_of(tmp_path / "run", tokens=10_000)
    assert found["new"].nats_before - found["new"].nats_after == pytest.approx(record.gain, abs=1e-5)
    assert found["old"].kl == pytest.approx(record.drift, rel=1e-4)
    for one in found.values():
        assert [layer.layer for layer in one.layers] == [0, 1, 2] and one.layers[2].shift > 0
        assert 0 < one.mean("procrustes") < 1 and 0 <= one.same_choice <= 1
    shown = CliRunner().invoke(app, ["evaluate", "changes", str(tmp_path / "run"), "--json"])
    assert shown.exit_code == 0 and json.loads(shown.stdout)["old"]["kl"] == pytest.approx(found["old"].kl, rel=0.2)
    assert "change of activations" in CliRunner().invoke(app, ["evaluate", "changes", str(tmp_path / "run")]).stdout


def test_no_run(tmp_path: Path) -> None:
    failed = CliRunner().invoke(app, ["evaluate", "changes", str(tmp_path)])
    assert failed.exit_code == 2 and "no finished run of `orthotune train sft`" in failed.stderr
