"""One finetuning run, alone and shared by two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthotune.recipes.settings import SFTSettings
from tiny_text import save_model, texts, write_jsonl

#: by name: how two processes run the same recipe, and which run of one process it must equal
JOBS: dict[str, dict[str, Any]] = {
    "none": {},
    "ddp": {"distributed": "ddp"},
    "fsdp2": {"distributed": "fsdp2"},
    "resumed": {"distributed": "fsdp2"},
}


def make_files(home: Path) -> None:
    save_model(home / "model", dtype="float32")
    # A multiple of the batch: the last step of an epoch has as many examples in one process as in two.
    write_jsonl(home / "new.jsonl", texts(16, "blue"))
    write_jsonl(home / "old.jsonl", texts(4, "red"))


def settings_of(home: Path, name: str) -> SFTSettings:
    # Blocks of 32, and of 24 where 32 does not divide the layer.
    recipe: dict[str, Any] = {
        "model": str(home / "model"),
        "data": str(home / "new.jsonl"),
        "old_data": str(home / "old.jsonl"),
        "steps": 6,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "max_length": 32,
        "learning_rate": 1e-2,
        "save_every": 2,
        "eval_every": 6,
        "output": home / name,
    }
    return SFTSettings(**(recipe | JOBS[name]))
