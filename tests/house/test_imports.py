"""Imports only look down the arrow of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from house.source import BESIDE, MODULES, ROOMS, imports, named, room_of

#: What each room may import of the package, besides itself and ``errors``. A new room is added here and to the map.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "rotation": set(),
    "kernels": {"rotation"},
    "quantized": {"rotation"},
    "layers": {"rotation", "kernels", "quantized"},
    "tuner": {"rotation", "kernels", "quantized", "layers", "formats"},
    "formats": {"rotation"},
    "loading": {"rotation", "layers", "tuner", "formats"},
    "merging": {"rotation", "kernels", "layers", "tuner", "formats", "loading"},
    "metrics": {"rotation"},
    "diagnosis": {"rotation", "kernels", "layers", "formats"},
    "report": set(),
    "training": {"rotation", "kernels", "quantized", "layers", "tuner", "formats", "metrics", "diagnosis"},
    "diffusion": {"rotation", "layers", "tuner", "formats", "loading", "metrics", "diagnosis", "training"},
    "worlds": {"training", "metrics", "diffusion"},
    "recipes": {
        "rotation",
        "layers",
        "tuner",
        "formats",
        "loading",
        "metrics",
        "report",
        "training",
        "diffusion",
        "worlds",
    },
    "__init__": {"tuner", "loading", "diagnosis"},
}
#: Rooms that need few libraries say which; the standard library is free.
LIBRARIES: dict[str, set[str]] = {
    "errors": set(),
    "rotation": {"torch"},
    "kernels": {"torch", "triton"},
    "formats": {"torch", "safetensors"},
    "report": {"jinja2"},
}


def _edges(path: Path) -> set[str]:
    """Rooms that a file imports; a public name of the package itself counts as the tuner, which defines it."""
    edges = set()
    for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
        top, _, rest = name.partition(".")
        if top == "orthotune_cli":
            edges.add(top)
        elif top == "orthotune":
            room = rest.split(".")[0]
            edges.add(room if room in BELOW else "tuner")
    return edges


def test_every_room_is_on_the_map() -> None:
    assert set(ROOMS) <= set(BELOW)


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) != "orthotune_cli"], ids=named)
def test_imports_look_down(path: Path) -> None:
    room = room_of(path)
    upward = _edges(path) - BELOW[room] - {room, "errors"}
    assert not upward, f"{room} may not import {', '.join(sorted(upward))}"


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) in LIBRARIES], ids=named)
def test_lean_rooms_stay_lean(path: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    extra = tops - set(sys.stdlib_module_names) - {"orthotune"} - LIBRARIES[room_of(path)]
    assert not extra, f"{room_of(path)} may not import {', '.join(sorted(extra))}"


@pytest.mark.parametrize("path", [p for p in MODULES if room_of(p) == "orthotune_cli"], ids=named)
def test_verbs_import_nothing_heavy_before_they_run(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    head = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    tops = {name.partition(".")[0] for name in imports(head)}
    assert tops <= set(sys.stdlib_module_names) | {"typer", "orthotune_cli"}


def test_one_file_touches_the_tables_of_peft() -> None:
    tables = re.compile(r"\bPEFT_TYPE_TO_\w+MAPPING\b")
    touching = [named(path) for path in MODULES if tables.search(path.read_text(encoding="utf-8"))]
    assert touching == ["src/orthotune/tuner/register.py"]


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_the_package_needs_nothing_of_the_clone(path: Path) -> None:
    """Only ``worlds.installed`` knows the wheel of the data; no file imports the benchmark, the tools or the tests."""
    beside = {p.relative_to(folder).parts[0].removesuffix(".py") for folder in BESIDE for p in folder.rglob("*.py")}
    tops = {name.partition(".")[0] for name in imports(ast.parse(path.read_text(encoding="utf-8")))}
    allowed = {"orthotune_worlds"} if named(path) == "src/orthotune/worlds/installed.py" else set()
    assert not tops & (beside | {"tests", "orthotune_worlds"}) - allowed


def test_no_circle_beside_the_package() -> None:
    """Among the scripts and the harness of ``benchmarks`` and among the tools no file imports itself by others."""
    for folder in BESIDE:
        files = {".".join(p.relative_to(folder).with_suffix("").parts): p for p in folder.rglob("*.py")}
        edges = {
            name: {other for other in files for got in imports(ast.parse(path.read_text(encoding="utf-8")))
                   if other != name and (got == other or got.startswith(f"{other}."))}
            for name, path in files.items()
        }  # fmt: skip
        while ends := [name for name, below in edges.items() if not below & edges.keys()]:
            for name in ends:
                del edges[name]
        assert not edges, f"import each other: {', '.join(sorted(edges))}"


def test_importing_the_package_is_cheap_and_changes_no_environment() -> None:
    # a fresh process: this one has imported everything already
    code = (
        "import os, sys; before = dict(os.environ); import peft; had = set(sys.modules); import orthotune;"
        "heavy = {'diffusers', 'trl', 'datasets', 'matplotlib', 'jinja2', 'typer', 'rich', 'pydantic', 'pandas'};"
        "new = {m.partition('.')[0] for m in set(sys.modules) - had} & heavy;"
        "assert not new, f'imports {new}';"
        "assert dict(os.environ) == before, 'changes the environment'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
