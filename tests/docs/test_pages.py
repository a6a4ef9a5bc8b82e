"""The pages have the parts that a reader looks for, and what they show can be typed."""

from __future__ import annotations

import json
import pkgutil
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from orthotune.cli.main import app
from orthotune.experiments.image_tasks import CompareControlSettings, CompareSubjectSettings
from orthotune.experiments.text_task import CompareSFTSettings
from orthotune.recipes.control import ControlSettings
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.recipes.text_to_image import TextToImageSettings
from tests.support.page_blocks import DOCS, GUIDES, PAGES, ROOT, blocks, commands

SETTINGS: dict[tuple[str, ...], tuple[Any, ...]] = {
    ("train", "sft"): (SFTSettings,),
    ("train", "subject"): (SubjectSettings,),
    ("train", "control"): (ControlSettings,),
    ("train", "t2i"): (TextToImageSettings,),
    ("compare", "sft"): (CompareSFTSettings, SFTSettings),
    ("compare", "subject"): (CompareSubjectSettings, SubjectSettings),
    ("compare", "control"): (CompareControlSettings, ControlSettings),
}


SETTINGS |= {("train", name): (recipe.settings_class(),) for name, recipe in RECIPES.items()}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", GUIDES, ids=named)
def test_guide_begins_with_what_is_needed_and_ends_with_what_comes_next(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    begin, end, after = (text.find(part) for part in ("**You need**", "**You have now**", "**Next:**"))
    assert 0 < begin < end < after


@pytest.mark.parametrize("page", sorted((DOCS / "evidence").glob("*.md")), ids=named)
def test_evidence_says_first_on_what_it_was_measured(page: Path) -> None:
    title, first = page.read_text(encoding="utf-8").split("\n\n")[:2]
    assert title.startswith("# ")
    assert page.name == "index.md" or first.startswith("Measured on ")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=named)
def test_python_on_a_page_is_python(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block.text, f"{page.name}:{block.line}", "exec")


#: what follows a name of a file, and no attribute
SUFFIXES = ("json", "yaml", "md", "safetensors", "pth", "py", "txt", "whl", "bin", "gguf", "png")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "ARCHITECTURE.md"], ids=named)
def test_python_names_on_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    names = {match[0] for match in re.finditer(r"\borthotune(?:\.[A-Za-z_]\w*)+", text)}
    gone = [name for name in sorted(names) if name.rpartition(".")[2] not in SUFFIXES and not _exists(name)]
    assert not gone, f"{named(page)} names {gone}, which this version does not have"


def _exists(name: str) -> bool:
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=named)
def test_commands_on_a_page_exist(page: Path) -> None:
    for block in blocks(page, "bash", "text"):
        for line in commands(block):
            if line.startswith("orthotune ") and "..." not in line:
                _parse(shlex.split(line, comments=True)[1:], f"{page.name}:{block.line}")


def _parse(words: list[str], where: str) -> None:
    """Refuse a verb, an option or a setting that the program does not know."""
    command: Any = typer.main.get_command(app)
    path: list[str] = []
    while getattr(command, "commands", None) and words and words[0] in command.commands:
        path.append(words[0])
        command, words = command.commands[words[0]], words[1:]
    if words[:1] in (["VERB"], ["--version"]):
        return
    assert path and not getattr(command, "commands", None), f"{where}: no verb {words[:1]}"
    context = command.make_context("orthotune", list(words))
    if kinds := SETTINGS.get(tuple(path)):
        for word in context.params.get("words") or []:
            key, is_setting, _ = word.partition("=")
            known = {name for kind in kinds for name in kind.model_fields}
            known |= {"for"} & {name.removeprefix("made_") for name in known}  # a field cannot have a name of Python's
            known |= {name for kind in kinds if hasattr(kind, "passed_keys") for name in kind.passed_keys()}
            assert not is_setting or key.partition(".")[0] in known, f"{where}: no setting {key}"


def test_retired_words_have_a_word_to_use() -> None:
    page = (DOCS / "concepts" / "glossary.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", page.split("## Retired words")[1], flags=re.MULTILINE)
    assert rows[0] == ("retired", "use") and len(rows) > 10
    retired = [old for old, _ in rows]
    assert len(set(retired)) == len(retired)


def test_notebooks_are_their_pages() -> None:
    made = runpy.run_path(str(DOCS / "_notebooks.py"))
    for page in made["PAGES"]:
        kept = json.loads(page.with_suffix(".ipynb").read_text(encoding="utf-8"))
        assert kept == made["notebook_of"](page), f"python docs/_notebooks.py writes {page.stem} anew"


def test_the_site_is_built_with_every_warning_an_error() -> None:
    (line,) = (line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "mkdocs build" in line)
    # quiet, mkdocs counts no warning, and --strict lets everything pass
    assert "--strict" in line and "quiet" not in line and " -q" not in line
    assert "warnings: true" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r"[\w-]+(?:/[\w-]+)*\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:")[1])
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in PAGES)
