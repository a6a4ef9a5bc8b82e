"""Samples on disk, for people and for the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from orthotune.image.loop.samples import Samples, draw_progress, read_samples

NOTHING: Any = None


def _drawn(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
    """Pictures whose grey says which prompt and seed they are of."""
    return torch.stack([
        torch.full((3, 4, 6), 100 * int(prompt[-1]) + seed, dtype=torch.uint8)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ])  # fmt: skip


def test_each_picture_can_be_found_by_step_prompt_and_seed(tmp_path: Path) -> None:
    samples = Samples(tmp_path, ["a 0", "a 1"], [3, 4, 5], _drawn)
    for step in (0, 50, 100):
        samples(step, NOTHING, NOTHING)
    entries = json.loads((tmp_path / "samples.json").read_text())
    assert len(entries) == 3 * 6
    assert [entry["step"] for entry in entries] == [0] * 6 + [50] * 6 + [100] * 6
    for entry in entries:
        picture = numpy.asarray(Image.open(tmp_path / entry["file"]))
        assert picture.shape == (4, 6, 3)
        assert (picture == 100 * int(entry["prompt"][-1]) + entry["seed"]).all()
        assert (tmp_path / entry["grid"]).is_file()


def test_a_run_that_goes_on_replaces_what_it_draws_again(tmp_path: Path) -> None:
    for steps in ((0, 50, 100), (50,)):
        samples = Samples(tmp_path, ["a 1"], [steps[0] % 7], _drawn)
        for step in steps:
            samples(step, NOTHING, NOTHING)
    assert [(entry["step"], entry["seed"]) for entry in read_samples(tmp_path)] == [(0, 0), (50, 1)]
    assert draw_progress(tmp_path, tmp_path / "sheet.png") and (tmp_path / "sheet.png").is_file()


def test_nothing_is_drawn_without_prompts_or_written_beside_the_main_process(tmp_path: Path) -> None:
    Samples(tmp_path, [], [1], _drawn)(0, NOTHING, NOTHING)
    Samples(tmp_path, ["a 0"], [1], _drawn, writes=False)(0, NOTHING, NOTHING)
    assert not list(tmp_path.iterdir()) and not draw_progress(tmp_path, tmp_path / "sheet.png")
