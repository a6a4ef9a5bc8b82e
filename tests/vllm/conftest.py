"""What the tests of the engine share: a base, adapters on it, their merged models' answers, and the engine."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vllm.engines import PROMPTS, answers, make_adapter, make_base, start, stop


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is in this folder where the engine is not installed."""
    if importlib.util.find_spec("vllm") is not None:
        return
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="vLLM has an environment of its own: make test-vllm"))


@pytest.fixture(scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model; with ``True`` as its parameter, embedding and head have one weight."""
    return make_base(tmp_path_factory.mktemp("base"), tied=getattr(request, "param", False))


@pytest.fixture(scope="module")
def adapters(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter for each of the ``ADAPTERS`` of the module, by its name."""
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: make_adapter(base, folder / name, seed, **config)
        for seed, (name, config) in enumerate(request.module.ADAPTERS.items())
    }


@pytest.fixture(scope="module")
def merged(request: pytest.FixtureRequest, adapters: dict[str, Path]) -> dict[str, Any]:
    """What each merged model says in an engine of its own: the answers to ``PROMPTS``, or the module's ``said``."""
    said = getattr(request.module, "said", lambda engine: answers(engine, PROMPTS))
    found = {}
    for name, path in adapters.items():
        engine = start(path / "merged", adapters=False)
        found[name] = said(engine)
        stop(engine)
    return found


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest, base: Path, merged: object) -> Iterator[Any]:
    """The engine that takes adapters, with the module's ``OPTIONS``; started when those of merged models are ended."""
    engine = start(base, **getattr(request.module, "OPTIONS", {}))
    yield engine
    stop(engine)
