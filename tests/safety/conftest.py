"""A finetuning run of seconds, for the accidents that happen to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.known_curves import _known_curves  # noqa: F401
from tests.support.tiny_text import save_model, texts, write_jsonl


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save_model(folder / "model", dtype="float32")
    write_jsonl(folder / "new.jsonl", texts(8, "blue"))
    return folder


def job_on(files: Path, output: Path) -> dict[str, Any]:
    """Eight steps of finetuning into ``output``, saved at every second one."""
    return {
        "model": str(files / "model"),
        "data": str(files / "new.jsonl"),
        "steps": 8,
        "batch_size": 2,
        "max_length": 32,
        "learning_rate": 1e-2,
        "save_every": 2,
        "eval_every": 8,
        "output": output,
    }


@pytest.fixture
def job(files: Path, tmp_path: Path) -> dict[str, Any]:
    return job_on(files, tmp_path / "run")
