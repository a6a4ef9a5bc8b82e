"""What the pages say is so."""

from __future__ import annotations

import re
from pathlib import Path

import orthotune
from tests.support.source import ROOMS, ROOT, named, project_files


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def test_readme_sets_up_with_exactly_two_commands() -> None:
    section = _text("README.md").split("## Two commands")[1].split("\n## ")[0]
    assert _blocks(section, "bash") == ["make demo\nmake test\n"]
    for target in ("demo", "test"):
        assert re.search(rf"^{target}: ", _text("Makefile"), flags=re.MULTILINE)


def test_ci_runs_the_readme_test_command() -> None:
    assert re.search(r'^"\$\{make_with\[@\]\}" test ', _text(".ci/run"), flags=re.MULTILINE)


def test_readme_examples_use_public_names() -> None:
    for block in _blocks(_text("README.md"), "python"):
        compile(block, "README.md", "exec")
        for names in re.findall(r"^from orthotune import ([\w, ]+)", block, flags=re.MULTILINE):
            assert {name.strip() for name in names.split(",")} <= set(orthotune.__all__)


def test_map_shows_every_room() -> None:
    page = _text("ARCHITECTURE.md")
    assert not [room for room in ROOMS if f"`{room}/`" not in page]


def test_relative_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_constraints_start_with_torch_and_name_no_build() -> None:
    lines = _text("constraints.txt").splitlines()
    assert re.fullmatch(r"torch==\d+\.\d+\.\d+", lines[0])
    assert not [line for line in lines if "+" in line.split(";")[0] or "@" in line]


def test_no_path_of_one_machine() -> None:
    places = {f"{ROOT}/", "/ho" + "me/", "/Us" + "ers/", "/ro" + "ot/"} | {f"{home}/" for home in _homes()}
    bad = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # pictures and weights
        bad += [f"{named(path)}: {place}" for place in places if place in text]
    assert not bad


def _homes() -> list[Path]:
    try:
        return [Path.home()]
    except RuntimeError:
        return []
