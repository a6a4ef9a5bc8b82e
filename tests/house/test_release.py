"""What a release depends on: one version, two wheels in step, a changelog that can be tagged."""

from __future__ import annotations

import re
from typing import Any

import pytest

import orthotune
from tests.support.source import ROOT, project_files

tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml; part of Python from 3.11 on")
Requirement = pytest.importorskip("packaging.requirements").Requirement
BOTH = [ROOT / "pyproject.toml", ROOT / "worlds" / "pyproject.toml"]


def _read(path: Any) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def test_the_version_is_in_one_place() -> None:
    for path in BOTH:
        stated = _read(path)
        assert "version" not in stated["project"] and stated["project"]["dynamic"] == ["version"]
        source = path.parent / stated["tool"]["hatch"]["version"]["path"]
        assert source.resolve() == ROOT / "src" / "orthotune" / "__init__.py"
    # "0.1" and "1.0" are in many files for other reasons; the version as it is written is in one
    elsewhere = [
        path.relative_to(ROOT).as_posix()
        for path in project_files()
        if path.suffix in (".py", ".toml", ".cff") and f'"{orthotune.__version__}"' in path.read_text(encoding="utf-8")
    ]
    assert elsewhere == ["src/orthotune/__init__.py"]


def test_the_extra_admits_the_data_of_the_same_version() -> None:
    (asked,) = (Requirement(line) for line in _read(BOTH[0])["project"]["optional-dependencies"]["worlds"])
    assert asked.name == _read(BOTH[1])["project"]["name"]
    assert asked.specifier.contains(orthotune.__version__)
    # the next release may have other data
    assert not asked.specifier.contains("1.0")


def test_both_wheels_run_on_the_same_pythons() -> None:
    own, data = (_read(path)["project"] for path in BOTH)
    assert own["requires-python"] == data["requires-python"]


def test_the_changelog_is_ready_to_be_tagged() -> None:
    heads = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    dates = [re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d{2}-\d{2})", head) for head in heads[1:]]
    assert all(dates) and [d[1] for d in dates if d] == sorted((d[1] for d in dates if d), reverse=True)


def test_ci_tries_the_wheels() -> None:
    assert re.search(r" test-dist ", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
