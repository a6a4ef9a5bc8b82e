"""The pages about adding something name what is there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from orthotune.image.families.flow_matching import FlowFamily
from orthotune.layers.base import OFTLayer
from orthotune.quantized.contract import Library
from tests.support.page_blocks import DOCS, ROOT

PAGES = sorted((DOCS / "contributing").glob("add-a-*.md"))
#: page -> the class whose members its table lists
LISTED: dict[str, type[Any]] = {
    "add-a-layer-kind": OFTLayer,
    "add-a-family": FlowFamily,
    "add-a-quantized-library": Library,
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_are_there(page: Any) -> None:
    named = re.findall(r"`((?:src|tests|docs|benchmarks)/[\w./-]+\.\w+)`", page.read_text(encoding="utf-8"))
    missing = [name for name in named if not (ROOT / name).is_file()]
    assert named and not missing


@pytest.mark.parametrize("page", LISTED)
def test_members_that_a_page_lists_are_those_of_the_class(page: str) -> None:
    rows = re.findall(r"^ +\| (`.+?) \|", (DOCS / "contributing" / f"{page}.md").read_text(encoding="utf-8"), re.M)
    names = [name for row in rows for name in re.findall(r"`(\w+)", row)]
    kind = LISTED[page]
    known = {*dir(kind), *(name for one in kind.__mro__ for name in getattr(one, "__annotations__", ()))}
    assert len(names) > 8 and set(names) <= known, set(names) - known


@pytest.mark.parametrize("page", LISTED)
def test_what_must_be_stated_is_listed(page: str) -> None:
    """What a class leaves open is on its page; of a library, what raises."""
    text = (DOCS / "contributing" / f"{page}.md").read_text(encoding="utf-8")
    kind = LISTED[page]
    for name in getattr(kind, "__abstractmethods__", ()):
        assert f"`{name}" in text, name
