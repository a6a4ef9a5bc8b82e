"""The setting ``answers`` of the language recipe: scores before and after, and nothing else of the run changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from orthotune.metrics.questions import Question
from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.metrics_log import read_lines

KEYS = {"answers_facts", "answers_arithmetic", "answers_instructions", "answers", "answers_nats"}
FEW = [
    Question("Sky?", "facts", ("blue",)),
    Question("1 + 1?", "arithmetic", ("2",)),
    Question("Say a.", "instructions", ("a",)),
]


def _settings(model: Path, texts: Path, old: Path, output: Path, **more: Any) -> SFTSettings:
    return SFTSettings(
        model=str(model), data=str(texts), old_data=str(old), output=output, steps=3, eval_every=1, batch_size=2,
        max_length=32, block_size=8, learning_rate=0.01, **more,
    )  # fmt: skip


def test_answers_are_scores_before_and_after(
    model_path: Path, text_path: Path, old_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sft, "read_questions", lambda: FEW)
    run = sft.run(_settings(model_path, text_path, old_path, tmp_path / "a", answers=True), print, bar=False)
    assert run.scores_before.keys() == run.scores_after.keys() == KEYS
    assert run.scores_before["answers_nats"] != run.scores_after["answers_nats"] > 0
    lines = read_lines(tmp_path / "a" / "metrics.jsonl")
    assert [line["step"] for line in lines if "answers" in line] == [0, 3]
    assert [line["step"] for line in lines if "new_nats" in line] == [0, 1, 2, 3]
    plain = sft.run(_settings(model_path, text_path, old_path, tmp_path / "b"), print, bar=False)
    assert plain.scores_before == {} and (plain.new_after, plain.old_after) == (run.new_after, run.old_after)
    name = "adapter/adapter_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_records_from_before_the_setting_can_be_resumed() -> None:
    assert "answers" not in SFTSettings().record() and SFTSettings(answers=True).record()["answers"] is True


@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3"])
def test_engines_that_divide_a_model_are_refused(engine: str) -> None:
    with pytest.raises(ValidationError, match=f"distributed={engine} does not have"):
        SFTSettings(answers=True, distributed=engine)
    assert SFTSettings(answers=True, distributed="ddp").answers
