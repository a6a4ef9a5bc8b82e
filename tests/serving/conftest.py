"""The plug-in's module for vLLM 0.32, with the engine or without."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from tests.support import recorded_engine

NAME = "orthotune.serving.vllm_0_32"


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module beside the engine where that is installed, else beside its recorded classes."""
    if importlib.util.find_spec("vllm") is not None:
        yield importlib.import_module(NAME)
        return
    for name, module in recorded_engine.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("define", "impl", "register_fake"):  # an operation is defined once in a process
        monkeypatch.setattr(torch.library, name, lambda *args, **kwargs: None)
    package = importlib.import_module("orthotune.serving")
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)
    if hasattr(package, "vllm_0_32"):
        del package.vllm_0_32
