"""An entire training step: every method learns, from the same weights, and one command prints and writes the ratios."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import complete_step
from harness.cells import Cell
from harness.contenders import stirred
from orthotune.files.tables import read_table

SMALL = complete_step.SHAPE | {"num_hidden_layers": 1, "vocab_size": 32}


def test_every_method_lowers_the_loss_and_leaves_the_base() -> None:
    subject = complete_step.causal_model("float32", 12, SMALL)
    base = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    for method in complete_step.methods():
        model = stirred(method, subject, Cell(SMALL["hidden_size"], 12, 1, "float32"))
        step = complete_step.training_step(subject, model, learning_rate=1e-2)
        before = subject.call(model, subject.x).item()
        for _ in range(5):
            step()
        assert subject.call(model, subject.x).item() < before, method.name
        assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, base[name]) for name, tensor in subject.model.state_dict().items())


def test_the_command_writes_ratios_to_lora(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--tokens", "8", "--layers", "1", "--vocabulary", "32", "--threads", "1", "--repetitions", "2"]
    monkeypatch.setattr("sys.argv", ["complete_step.py", *words, "--out", str(tmp_path / "rows.csv")])
    complete_step.main()
    rows = [row for _, row in read_table(tmp_path / "rows.csv")]
    assert [row["name"] for row in rows] == list(complete_step.NAMES) and rows[0]["median"] == "1.0"
    # 31/2 numbers for each input of the seven layers: 6 x 576 + 1536; LoRA: 16 for each input and output.
    assert int(rows[2]["parameters"]) == (6 * 576 + 1536) * 31 // 2
    assert (
        int(rows[0]["parameters"])
        == int(rows[1]["parameters"])
        == 16 * ((6 * 576 + 1536) + (2 * 576 + 2 * 192 + 2 * 1536 + 576))
    )
    assert "of LoRA's time" in capsys.readouterr().out
