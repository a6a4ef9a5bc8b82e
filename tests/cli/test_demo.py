"""``orthotune demo`` ends by naming what it made. Training is tested where it lives; stand-ins take its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch


def _stand_in(settings: Any, say: Any) -> SimpleNamespace:
    """Leaves behind what a run leaves, with an adapter that turns something."""
    from transformers import AutoModelForCausalLM

    from orthotune import OFTConfig, get_peft_model
    from orthotune.worlds.text import MODEL

    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(MODEL), OFTConfig(target_modules=["q_proj"]))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    tuned.save_pretrained(settings.output / "adapter")
    losses = {"new_before": 3.0, "new_after": 2.5, "gain": 0.5, "old_before": 2.0, "old_after": 2.1, "forgetting": 0.1}
    record = {"method": "oft", "settings": {"model": "text-world"}, "artifacts": {"adapter": "adapter"}, **losses}
    (settings.output / "run.json").write_text(json.dumps(record))
    return SimpleNamespace(**losses)


def _drawn(settings: Any, say: Any) -> SimpleNamespace:
    """Leaves behind what a subject's run leaves: two prompts, drawn from two seeds, before and after."""
    from PIL import Image

    (settings.output / "adapter").mkdir(parents=True)
    entries = []
    for step in (0, 200):
        for number, prompt in enumerate(("a red sks digit", "a sks digit on grass")):
            for seed in (0, 1):
                file = f"{step}-{number}-{seed}.png"
                Image.new("RGB", (32, 32), (step, 40 * number, 40 * seed)).save(settings.output / file)
                entries.append({"step": step, "prompt": prompt, "seed": seed, "file": file, "grid": file})
    (settings.output / "samples.json").write_text(json.dumps(entries))
    scores = {"scores_before": {"nine": 0.03, "kept": 1.0}, "scores_after": {"nine": 0.5, "kept": 0.95}}
    record = {"recipe": "subject", "method": "oft", "settings": {"model": "image-world"}, "artifacts": {}, **scores}
    (settings.output / "run.json").write_text(json.dumps(record))
    return SimpleNamespace(**scores)


def test_demo_names_what_it_made(call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orthotune.recipes import sft, subject

    monkeypatch.setattr(sft, "run", _stand_in)
    monkeypatch.setattr(subject, "run", _drawn)
    place = tmp_path / "demo"
    place.mkdir()
    (place / "run.json").write_text("{}")
    done = call("demo", "--out", place)
    assert done.exit_code == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[0] == f"{place} holds an earlier run; this one goes to {place}-2"
    assert "learned       +0.500 nats per token" in done.stdout
    assert "forgotten     +0.100 nats per token" in done.stdout
    assert [line.split()[0] for line in lines[-10:-5]] == ["before", "after", "adapter", "merged", "report"]
    for line, name in zip(lines[-8:-5], ("adapter", "merged", "report.html"), strict=True):
        assert line.endswith(f"{place}-2/{name}")
        assert Path(f"{place}-2", name).exists()
    assert lines[-5].split()[:3] == ["3%", "to", "50%"] and lines[-4].split()[:3] == ["100%", "to", "95%"]
    assert [line.split()[0] for line in lines[-3:]] == ["adapter", "report", "images"]
    for line, name in zip(lines[-3:], ("adapter", "report.html", "subject.png"), strict=True):
        assert line.endswith(f"{place}-2/subject/{name}")
        assert Path(f"{place}-2", "subject", name).exists()
    samples = json.loads((tmp_path / "demo-2" / "samples.json").read_text())
    assert samples[0]["before"] != samples[0]["after"]
    assert (place / "run.json").read_text() == "{}"
