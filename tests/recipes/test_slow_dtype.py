"""A dtype that the processor multiplies slowly is told at the start of a run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from orthotune.recipes import text_run
from orthotune.runs import slow_dtype
from orthotune.runs.slow_dtype import sentence, slow_dtype_note, times_slower


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_ratio_is_measured(dtype: torch.dtype) -> None:
    # No bound: half precision is twice as fast as float32 on some processors and seventy times slower on others.
    assert 0 < times_slower(dtype) < math.inf


@pytest.mark.parametrize(("ratio", "told"), [(0.5, False), (1.0, False), (2.99, False), (3.0, True), (68.4, True)])
def test_a_note_begins_at_three_times(ratio: float, told: bool) -> None:
    found = sentence(ratio, "dtype=bfloat16", "dtype=float32")
    assert (found is not None) == told
    if found:
        assert f"about {ratio:.0f} times" in found
        assert found.startswith("dtype=bfloat16:")
        assert "use dtype=float32" in found


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.float32, "cpu"), (torch.bfloat16, "cuda"), (torch.float16, "mps")]
)
def test_what_cannot_be_slow_is_not_measured(dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_dtype, "times_slower", pytest.fail)
    assert slow_dtype_note(dtype, device, "dtype=x", "dtype=y") is None


def test_a_run_says_so_before_its_first_step(
    monkeypatch: pytest.MonkeyPatch, model_path: Path, text_path: Path, old_path: Path, tmp_path: Path
) -> None:
    from orthotune.recipes.settings import SFTSettings
    from orthotune.recipes.sft import run

    # The ratio is the processor's; the sentence is what a run does with it.
    monkeypatch.setattr(slow_dtype, "times_slower", lambda dtype: 68.0)
    said: list[str] = []
    settings = SFTSettings(
        model=str(model_path), data=str(text_path), old_data=str(old_path), learning_rate=1e-3, dtype="bfloat16",
        steps=1, batch_size=1, max_length=16, eval_tokens=64, output=tmp_path / "run",
    )  # fmt: skip
    record = run(settings, say=said.append)
    note = "dtype=bfloat16: this CPU takes about 68 times as long"
    assert any(note in line for line in said[0].split("\n"))
    assert any(note in line for line in record.notes)
    assert text_run.slow_dtype_note is slow_dtype_note
