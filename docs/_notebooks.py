"""The notebooks of the two first pages, made of the pages themselves: ``python docs/_notebooks.py`` writes them.

Commands become lines that begin with ``!``. Outputs are not kept; `make test-docs` runs the cells.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

START = Path(__file__).parent / "start"
PAGES = (START / "first-language-model.md", START / "first-subject.md")
FENCE = re.compile(r"^```(python|bash)\n(.*?)^```\n", flags=re.DOTALL | re.MULTILINE)


def notebook_of(page: Path) -> dict[str, Any]:
    """The notebook of a page, as the JSON that Jupyter reads.

    Example:
        >>> [cell["cell_type"] for cell in notebook_of(PAGES[0])["cells"]][:2]
        ['markdown', 'code']
    """
    text = "\n".join(line for line in page.read_text(encoding="utf-8").split("\n") if ".ipynb)" not in line)
    cells, end = [], 0
    for block in FENCE.finditer(text):
        cells += [_cell("markdown", text[end : block.start()]), _cell("code", _code(block[1], block[2]))]
        end = block.end()
    cells.append(_cell("markdown", text[end:]))
    cells = [cell | {"id": f"cell-{number}"} for number, cell in enumerate(cells) if cell["source"]]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def write() -> None:
    """Write the notebook of every page beside it."""
    for page in PAGES:
        text = json.dumps(notebook_of(page), indent=1, ensure_ascii=False)
        page.with_suffix(".ipynb").write_text(text + "\n", encoding="utf-8")


def _code(language: str, text: str) -> str:
    return text if language == "python" else re.sub(r"(?<!\\\n)^(?=\S)", "!", text, flags=re.MULTILINE)


def _cell(kind: str, text: str) -> dict[str, Any]:
    cell: dict[str, Any] = {"cell_type": kind, "metadata": {}, "source": text.strip("\n").splitlines(keepends=True)}
    return cell | {"execution_count": None, "outputs": []} if kind == "code" else cell


if __name__ == "__main__":
    write()
