"""Finetuning runs of a language and of an image model, alone and shared by two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.worlds.image_folders import write_subject
from tests.support.tiny_pipelines import save_tiny
from tests.support.tiny_text import save_model, texts, write_jsonl

#: by name: how two processes run the same recipe, and which run of one process it must equal
JOBS: dict[str, dict[str, Any]] = {
    "none": {},
    "ddp": {"distributed": "ddp"},
    "fsdp2": {"distributed": "fsdp2"},
    "resumed": {"distributed": "fsdp2"},
}

#: outputs kept on old texts: three rows of seven, of uneven length, which do not come out even among two processes
KEEPING: dict[str, dict[str, Any]] = {
    "keep": {},
    "keep-ddp": {"distributed": "ddp"},
    "keep-fsdp2": {"distributed": "fsdp2"},
}

#: ended by a rule at the first measurement of six steps
STOPPING: dict[str, dict[str, Any]] = {
    "stop-ddp": {"distributed": "ddp", "result": "best"},
    "stop-fsdp2": {"distributed": "fsdp2"},
}


def make_files(home: Path) -> None:
    save_model(home / "model", dtype="float32")
    # A multiple of the batch: the last step of an epoch has as many examples in one process as in two.
    write_jsonl(home / "new.jsonl", texts(16, "blue"))
    write_jsonl(home / "old.jsonl", texts(4, "red"))
    write_jsonl(home / "kept.jsonl", [{"text": row["text"][: 5 + 4 * n]} for n, row in enumerate(texts(7, "kept"))])
    save_tiny("sd15", home / "unet")
    write_subject(home / "pictures")


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
        # With a rate of their own, which every way of sharing must know.
        "rotation": {"magnitude": True},
    }
    if name in KEEPING:
        recipe |= {"keep": 3, "keep_data": str(home / "kept.jsonl"), "keep_batch": 3}
    if name in STOPPING:
        recipe |= {"eval_data": str(home / "new.jsonl"), "eval_every": 2, "stop_when": {"gain": 1e-6}}
    return SFTSettings(**(recipe | (JOBS | KEEPING | STOPPING)[name]))


def pictures_of(home: Path, name: str, processes: int) -> SubjectSettings:
    """The same two batches of two pictures in each step: beside each other, or one after the other."""
    said: dict[str, Any] = {
        "model": str(home / "unet"), "instance_images": str(home / "pictures"), "instance_prompt": "a sks digit",
        "block_size": 4, "steps": 4, "batch_size": 2, "gradient_accumulation": 2 // processes, "learning_rate": 1e-2,
        "ema": 0.5, "noise_offset": 0.1, "sample_steps": 1, "sample_every": 4, "save_every": 2, "output": home / name,
    }  # fmt: skip
    return SubjectSettings(**said)
