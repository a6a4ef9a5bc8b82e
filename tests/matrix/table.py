"""What the cells came to, as a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

BEGIN, END = "<!-- the table: written by make matrix-table -->\n", "<!-- the end of the table -->\n"
SHOWN = ("python", "torch", "peft", "transformers", "accelerate", "trl", "diffusers", "safetensors")
COUNTED = ("passed", "skipped", "failed")


@dataclass
class Result:
    """One cell: its versions, its counts, or why it has none; ``tests`` is the list that ran (whole, short)."""

    cell: str
    tests: str
    versions: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    trouble: str | None = None

    @property
    def good(self) -> bool:
        """Whether all of it ran and nothing failed."""
        return self.trouble is None and not self.counts.get("failed", 1) and self.counts["passed"] > 0

    def row(self) -> list[str]:
        """The cells of its line; local parts of versions (``+cpu``) are left out."""
        versions = [self.versions.get(name, "-").partition("+")[0] for name in SHOWN]
        return [self.cell, *versions, self.tests, *(str(self.counts.get(name, "-")) for name in COUNTED)]

    def stored(self) -> dict[str, Any]:
        """What the JSON keeps."""
        return asdict(self)


def count(junit: Path) -> dict[str, int]:
    """Tests passed, skipped and failed, errors among the failed, from the file that pytest writes.

    Raises:
        ElementTree.ParseError, OSError: the file is not whole or not there.
    """
    suites = [suite.attrib for suite in ElementTree.parse(junit).getroot().iter("testsuite")]
    total = {name: sum(int(suite[name]) for suite in suites) for name in ("tests", "failures", "errors", "skipped")}
    failed = total["failures"] + total["errors"]
    return {"passed": total["tests"] - failed - total["skipped"], "skipped": total["skipped"], "failed": failed}


def markdown(results: Iterable[Result]) -> str:
    """The table, and below it a line for each cell that has no counts."""
    results = list(results)
    head = ["cell", *(name.replace("python", "Python") for name in SHOWN), "tests", *COUNTED]
    rows = [head, *(result.row() for result in results)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    trouble = [f"- {result.cell}: {result.trouble}" for result in results if result.trouble]
    return "\n".join([*lines, *([""] if trouble else []), *trouble]) + "\n"


def put_in_page(table: str, page: Path) -> None:
    """Put the table between the two marks of the page."""
    text = page.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    tail = rest.partition(END)[2]
    close = re.sub(r" +\|", " |", re.sub(r"-{3,}", "---", table))
    page.write_text(f"{head}{BEGIN}\n{close}\n{END}{tail}", encoding="utf-8")
