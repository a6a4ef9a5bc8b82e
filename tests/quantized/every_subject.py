"""The layers of all libraries that can be imported here, as the test files beside this one name them."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.quantized.layer_checks import Subject


def every_subject() -> dict[str, Subject]:
    """``"library: layer"`` -> subject, in the order of the files."""
    found: dict[str, Subject] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        library = path.stem.removeprefix("test_")
        if library in ("every_library", "llama", "recipe", "toy", "plain"):
            continue
        try:
            module = importlib.import_module(f"tests.quantized.{path.stem}")
        except (pytest.skip.Exception, ImportError):
            continue  # not installed here
        for subject in getattr(module, "SUBJECTS", []):
            found[f"{library}: {subject.name.removeprefix(library + '-')}"] = subject
    return found
