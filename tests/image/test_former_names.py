"""Checkpoints of image runs from before magnitudes were modules, whose names have no ``.weight``, continue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.image.loop.checkpoint import (
    OPTIMIZER,
    STATE,
    TRAINED,
    Parts,
    Progress,
    read_checkpoint,
    write_checkpoint,
)


def _parts() -> Parts:
    torch.manual_seed(0)
    config = OFTConfig(target_modules=["0"], oft_block_size=4, magnitude=True)
    model = get_peft_model(nn.Sequential(nn.Linear(8, 6)), config)
    return Parts(model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1))


def _step(parts: Parts) -> None:
    parts.optimizer.zero_grad()
    parts.model(torch.ones(2, 8)).square().sum().backward()
    parts.optimizer.step()


@pytest.mark.parametrize("former", [False, True])
def test_numbers_and_moments_come_back(former: bool, tmp_path: Path) -> None:
    parts, again = _parts(), _parts()
    _step(parts)
    write_checkpoint(tmp_path, parts, Progress(step=1), keep=1)
    folder = tmp_path / "checkpoint-1"
    if former:
        for name in (TRAINED, OPTIMIZER):
            tensors = {key.replace("default.weight", "default") if "magnitude" in key else key: value
                       for key, value in load_file(folder / name).items()}  # fmt: skip
            save_file(tensors, folder / name)
        text = (folder / STATE).read_text().replace("oft_magnitude.default.weight", "oft_magnitude.default")
        json.loads(text)
        (folder / STATE).write_text(text)
    read_checkpoint(folder, again)
    for one in (parts, again):
        _step(one)
    for p, q in zip(parts.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p, q)
