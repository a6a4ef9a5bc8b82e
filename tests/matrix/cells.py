"""The cells of the compatibility matrix, as ``cells.ini`` states them."""

from __future__ import annotations

import re
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: Optional parts of the package that are installed in every cell; the others need a GPU or an environment of their own.
EXTRAS = ("text", "image", "metrics", "toy", "build-worlds", "triton", "test")
ANY = "any"


@dataclass(frozen=True)
class Cell:
    """One environment: ``python`` as ``3.11``, ``torch`` a version or ``any``, ``versions`` a file here or ``any``."""

    name: str
    python: str
    torch: str
    versions: str

    def constraints(self) -> str:
        """The text of the constraints file that pip gets, torch included."""
        lines = {} if self.versions == ANY else stated(ROOT / "constraints.txt") | stated(HERE / self.versions)
        lines.pop("torch", None)
        if self.torch != ANY:
            lines["torch"] = f"torch=={self.torch}"
        return "".join(f"{line}\n" for line in lines.values())


def read_cells(path: Path = HERE / "cells.ini") -> tuple[dict[str, Cell], dict[str, list[str]]]:
    """Cells by name, and the lists of tests (``whole``, ``short``)."""
    parsed = ConfigParser()
    parsed.read_string(path.read_text(encoding="utf-8"))
    tests = {kind: names.split() for kind, names in parsed["tests"].items()}
    return {name: Cell(name, **parsed[name]) for name in parsed.sections() if name != "tests"}, tests


def stated(path: Path) -> dict[str, str]:
    """Lines of a constraints file by the name of the library."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return {re.split(r"[=<>~!; \[]", line)[0].lower(): line for line in lines if line and not line.startswith("#")}
