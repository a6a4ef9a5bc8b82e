"""Imports only look down the arrow of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from house.source import MODULES, ROOMS, imports, named, room_of

#: What each room may import of the package, besides itself and ``errors``. A new room is added here and to the map.
BELOW: dict[str, set[str]] = {
    "errors": set(),
    "files": set(),
    "rotation": set(),
    "kernels": {"rotation"},
    "quantized": {"rotation"},
    "layers": {"rotation", "kernels", "quantized"},
    "tuner": {"files", "rotation", "kernels", "quantized", "layers", "formats"},
    "formats": {"files", "rotation"},
    "loading": {"files", "rotation", "layers", "tuner", "formats"},
    "merging": {"files", "rotation", "kernels", "layers", "tuner", "formats", "loading"},
    "metrics": {"files", "rotation"},
    "diagnosis": {"rotation", "kernels", "layers", "formats"},
    "report": {"files"},
    "training": {"files", "rotation", "kernels", "quantized", "layers", "tuner", "formats", "metrics", "diagnosis"},
    "diffusion": {"files", "rotation", "layers", "tuner", "formats", "loading", "metrics", "diagnosis", "training"},
    "worlds": {"files", "training", "metrics", "diffusion"},
    "bench": {"files", "kernels", "layers", "tuner", "training"},
    "recipes": {
        "files",
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
    "files": {"torch", "safetensors"},
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
