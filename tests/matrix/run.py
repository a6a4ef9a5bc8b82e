"""The compatibility matrix: each cell in an environment of its own, the same tests in each, and one table.

PYTHONPATH=. python -m tests.matrix.run [--cell NAME ...] [--short] [--into DIR] [--page PAGE] [pytest's options]

The exit status is 0 when everything passed, 1 when a cell failed or could not be set up, 2 for a wrong word.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from xml.etree.ElementTree import ParseError

from tests.matrix.cells import ROOT, Cell, read_cells
from tests.matrix.environment import Broken, child_environment, install, installed
from tests.matrix.table import Result, count, markdown, put_in_page


def run_cell(cell: Cell, kind: str, tests: list[str], into: Path, options: list[str]) -> Result:
    """Set the cell up, run the tests in it and count; nothing of a cell stops the others."""
    result = Result(cell.name, kind)
    print(f"== {cell.name}: Python {cell.python}, torch {cell.torch}, versions: {cell.versions}", flush=True)
    try:
        python = install(cell, into / cell.name)
    except Broken as why:
        result.trouble = str(why)
        print(f"{cell.name}: {why}", flush=True)
        return result
    result.versions = installed(python)
    junit = into / f"{cell.name}.xml"
    junit.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", f"--junitxml={junit}", *options, *tests]
    status = subprocess.run(command, cwd=ROOT, env=child_environment(), stdin=subprocess.DEVNULL).returncode
    try:
        result.counts = count(junit)
    except (OSError, ParseError):
        result.counts = {}
    if status not in (0, 1) or not result.counts:
        result.trouble = f"pytest ended with status {status}"
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the cells that are asked for, or all, and write ``results.json`` and ``results.md``."""
    cells, tests = read_cells()
    parser = argparse.ArgumentParser(prog="matrix.run", description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--cell", action="append", metavar="NAME", help=f"one of {', '.join(cells)}; may be repeated")
    parser.add_argument("--short", action="store_true", help="the short list of tests")
    parser.add_argument("--into", type=Path, default=ROOT / ".venv-matrix", help="where the environments are kept")
    parser.add_argument("--page", type=Path, help="a page with the marks of the table, which gets all kept results")
    chosen, options = parser.parse_known_args(argv)
    unknown = [name for name in chosen.cell or [] if name not in cells]
    if unknown:
        print(f"no cell is called {', '.join(unknown)}; there are: {', '.join(cells)}", file=sys.stderr)
        return 2
    into, kind = chosen.into.absolute(), "short" if chosen.short else "whole"
    into.mkdir(parents=True, exist_ok=True)
    results = []
    for name in chosen.cell or cells:
        results.append(run_cell(cells[name], kind, tests[kind], into, options))
        kept = keep(into / "results.json", results[-1], list(cells))
    (into / "results.md").write_text(markdown(kept), encoding="utf-8")
    if chosen.page:
        put_in_page(markdown(kept), chosen.page)
    print(f"\n{markdown(results)}\n(also in {into}: results.json, results.md)")
    return 0 if all(result.good for result in results) else 1


def keep(path: Path, result: Result, order: list[str]) -> list[Result]:
    """Put a result in the place of the cell's last one; gives all that are kept, in the order of the cells."""
    stored = {row["cell"]: row for row in json.loads(path.read_text(encoding="utf-8"))} if path.exists() else {}
    stored[result.cell] = result.stored()
    rows = [stored[name] for name in order if name in stored]
    written = path.with_suffix(".part")
    written.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    written.replace(path)
    return [Result(**row) for row in rows]


if __name__ == "__main__":
    sys.exit(main())
