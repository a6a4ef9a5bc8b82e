"""The subjects of all installed libraries: ``SUBJECTS`` of each ``test_<library>.py`` in this folder."""

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
            name = f"{library}: {subject.name.removeprefix(library + '-')}"
            assert name not in found, f"two subjects are named {name}"
            found[name] = subject
    return found


def first_of_each_library(subjects: dict[str, Subject]) -> dict[str, Subject]:
    """Name -> subject for the first subject of each library, from the result of ``every_subject``."""
    first: dict[str, str] = {}
    for name in subjects:
        first.setdefault(name.partition(": ")[0], name)
    return {name: subjects[name] for name in first.values()}
