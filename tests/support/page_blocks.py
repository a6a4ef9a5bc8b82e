"""The code on the pages of the documents, as the tests read it."""

from __future__ import annotations

import ast
import re
import shlex
import textwrap
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: pages whose blocks run one after the other, on the built-in models
GUIDES = [*sorted((DOCS / "how-to").glob("*.md")), *sorted((DOCS / "start").glob("first-*.md"))]

_BLOCK = re.compile(r"(?:^ *<!-- needs: (\w+) -->\n)?^( *)```(\w+)\n(.*?)^\2```$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block; ``needs`` is a module without which it cannot run."""

    page: Path
    line: int
    language: str
    text: str
    needs: str | None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages, in order; those in lists are unindented."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(page, text.count("\n", 0, found.start()) + 1, found[3], textwrap.dedent(found[4]), found[1])
        for found in _BLOCK.finditer(text)
        if found[3] in languages
    ]


def steps(page: Path) -> list[Block]:
    """What a reader types who follows a guide: the blocks of its steps, before it says what there is now."""
    text = page.read_text(encoding="utf-8")
    end = text.count("\n", 0, text.index("**You have now**"))
    return [block for block in blocks(page, "bash", "python") if block.line <= end]


def commands(block: Block) -> list[str]:
    """The commands of a block, each on one line, comments left away."""
    found: list[str] = []
    open_ended = ""
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        open_ended = f"{open_ended} {line.strip()}".strip()
        try:
            shlex.split(open_ended, comments=True)
        except ValueError:  # a quote goes on in the next line
            continue
        if open_ended and not open_ended.startswith("#"):
            found.append(open_ended)
        open_ended = ""
    return found


#: A link to a test, in a table or a note: the file, then the name of the function.
TEST_LINK = re.compile(r"\]\(\.\./\.\./(tests/[\w/]+\.py)#(\w+)\)")


@cache
def _tests(file: str) -> frozenset[str]:
    """The test functions of a file, which is parsed and not imported."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return frozenset(one.name for one in tree.body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"))


def missing_tests(text: str) -> list[str]:
    """The tests that a text links to and that are not there."""
    return [f"{file}::{name}" for file, name in TEST_LINK.findall(text)
            if not (ROOT / file).is_file() or name not in _tests(file)]  # fmt: skip
