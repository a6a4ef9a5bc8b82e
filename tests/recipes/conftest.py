"""The tiny model and texts, written once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny_text import save_model, texts, write_jsonl


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def text_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "new.jsonl", texts(24, "blue"))


@pytest.fixture(scope="session")
def old_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "old.jsonl", texts(4, "RED-"))
