"""The page of features: each `yes` of orthotune names a test that exists, and everything else is explained."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.support.page_blocks import DOCS, TEST_LINK, missing_tests

PAGE = DOCS / "reference" / "features.md"
OTHERS = ("Axolotl", "LLaMA-Factory", "TRL", "Unsloth")
HEADER = ("feature", "orthotune", *OTHERS)
TEXT = PAGE.read_text(encoding="utf-8")


def _rows(text: str) -> Iterator[tuple[str, ...]]:
    """The rows of the tables whose header is `HEADER`, without their header and rule."""
    inside = False
    for line in text.splitlines():
        cells = tuple(cell.strip() for cell in line.strip("|").split("|")) if line.startswith("|") else ()
        if not cells:
            inside = False
        elif cells == HEADER:
            inside = True
        elif inside and not set(cells[0]) <= {"-", ":"}:
            yield cells


def _faults(text: str) -> list[str]:
    """What is wrong with the rows of a page."""
    noted = set(re.findall(r"^- \*\*(.+?)\*\*: ", text, flags=re.MULTILINE))
    rows = list(_rows(text))
    names = [row[0] for row in rows]
    found = [f"{name}: more than one row" for name in sorted(set(names)) if names.count(name) > 1]
    found += [f"{name}: a note without a row" for name in sorted(noted - set(names) - _sources(text))]
    for name, *cells in rows:
        if len(cells) != 1 + len(OTHERS):
            found.append(f"{name}: {len(cells)} cells")
            continue
        own, *others = cells
        word = re.fullmatch(r"\[(yes|part)\]\(.*\)|no", own)
        if not word or (own != "no" and not TEST_LINK.search(own)):
            found.append(f"{name}: orthotune's cell is {own}, not a linked yes or part, or no")
        found += [f"{name}: {cell}" for cell in others if cell not in ("yes", "part", "no", "?")]
        if name not in noted and (own == "no" or "[part]" in own or "part" in others):
            found.append(f"{name}: no note says which part, or why not")
    return found


def _sources(text: str) -> set[str]:
    """The projects in the list of sources."""
    return set(re.findall(r"^- \*\*(.+?)\*\*", text.partition("\n## Sources\n")[2], flags=re.MULTILINE))


def test_every_test_that_is_named_exists() -> None:
    assert len(TEST_LINK.findall(TEXT)) > 30 and not missing_tests(TEXT)


def test_every_link_of_a_cell_names_a_test() -> None:
    for row in _rows(TEXT):
        assert row[1].count("](") == len(TEST_LINK.findall(row[1])), row[0]


def test_every_row_is_complete_and_explained() -> None:
    assert len(list(_rows(TEXT))) > 30 and not _faults(TEXT)


def test_every_project_has_its_version_and_the_date() -> None:
    assert "Looked up on 2026-11-29" in TEXT
    sources = _sources(TEXT)
    for project in OTHERS:
        assert any(re.match(rf"{project} \d+\.\d+", one) for one in sources), project


GOOD = "[yes](../../tests/docs/test_features.py#test_every_test_that_is_named_exists)"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (f"| a | {GOOD} | yes | no | ? | no |", None),
        ("| a | yes | yes | no | ? | no |", "not a linked yes"),
        ("| a | [yes](features.md) | yes | no | ? | no |", "not a linked yes"),
        ("| a | no | yes | no | ? | no |", "no note"),
        (f"| a | {GOOD} | maybe | no | ? | no |", "maybe"),
        (f"| a | {GOOD} | part | no | ? | no |", "no note"),
        (f"| a | {GOOD} | no | ? | no |", "4 cells"),
        (f"| a | {GOOD} | yes | no | ? | no |\n| a | {GOOD} | yes | no | ? | no |", "more than one row"),
        (f"| a | {GOOD} | yes | no | ? | no |\n\n- **b**: it is.", "a note without a row"),
    ],
)
def test_planted_faults_are_found(row: str, fault: str | None) -> None:
    rule = "|" + "---|" * len(HEADER)
    found = _faults(f"| {' | '.join(HEADER)} |\n{rule}\n{row}\n")
    assert (fault is None) == (not found) and all(fault is not None and fault in one for one in found)


def test_planted_names_are_missing() -> None:
    for planted in ("#test_that_is_not_there)", "#_rows)"):
        assert missing_tests(GOOD.partition("#")[0] + planted)
    assert missing_tests(GOOD.replace("test_features.py", "test_of_nothing.py")) and not missing_tests(GOOD)
