"""The checkpoint of a trainer appears complete or not at all, whatever writes into it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace as Stub
from typing import Any

import pytest
import torch
from torch import nn

from orthotune.errors import OutputError
from orthotune.runs.checkpoint_manifest import check
from orthotune.text.saved_state import read_skipped, save_checkpoint

SKIPPED = [{"step": 2, "kind": "loss", "layer": None}]


def _trainer(folder: Path, step: int) -> Any:
    return Stub(
        state=Stub(global_step=step),
        args=Stub(output_dir=str(folder), save_total_limit=2),
        accelerator=Stub(num_processes=1, wait_for_everyone=lambda: None),
        is_world_process_zero=lambda: True,
    )


def _save(folder: Path, step: int, model: nn.Module | None = None, **options: Any) -> list[str]:
    def write(below: Path) -> None:
        # As a trainer does: a card beside the checkpoint, a pickle and a folder of another adapter in it.
        inner = below / f"checkpoint-{step}"
        (inner / "ref").mkdir(parents=True)
        (below / "README.md").write_text("card")
        for name in ("weights", "training_args.bin", "README.md", "ref/weights"):
            (inner / name).write_text(name)
        if options.get("full"):
            raise OSError(28, "No space left on device")

    messages: list[str] = []
    wanted = options.get("on_failed_save", "stop")
    save_checkpoint(_trainer(folder, step), model or nn.Linear(1, 1), write, SKIPPED, wanted, messages.append)
    return messages


def test_a_checkpoint_holds_what_resuming_reads(tmp_path: Path) -> None:
    assert _save(tmp_path, 4) == []
    checkpoint = tmp_path / "checkpoint-4"
    assert check(checkpoint) == 4 and read_skipped(checkpoint) == SKIPPED and read_skipped(tmp_path) == []
    names = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert names == {"weights", "ref/weights", "skipped.json", "manifest.json"}
    for step in (6, 8):
        _save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-6", "checkpoint-8"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    _save(tmp_path, 4)
    with pytest.raises(OutputError, match="checkpoint of step 6 could not be written.*checkpoint-4 is kept"):
        _save(tmp_path, 6, full=True)
    (message,) = _save(tmp_path, 6, full=True, on_failed_save="go-on")
    assert "Training goes on" in message
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-4"]


def test_parameters_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    torch.nn.init.constant_(model.bias, float("inf"))
    (message,) = _save(tmp_path, 4, model)
    assert "Step 4: 'bias' holds NaN or infinity" in message and not list(tmp_path.iterdir())
