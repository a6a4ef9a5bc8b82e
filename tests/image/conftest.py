"""Tiny pipelines of every family, saved once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_pipelines import save_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a tiny pipeline of a kind; do not write into it."""
    made: dict[tuple[Any, ...], Path] = {}

    def folder(kind: str, **scheduler: Any) -> Path:
        key = (kind, *sorted(scheduler.items()))
        if key not in made:
            made[key] = save_tiny(kind, tmp_path_factory.mktemp(kind), **scheduler)
        return made[key]

    return folder
