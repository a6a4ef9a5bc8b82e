"""Imports only look down the arrow of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import orthotune
from tests.support.after_peft import Run
from tests.support.source import BESIDE, MODULES, ROOMS, ROOT, imports, named, room_of, tree_of

#: An entry that is no room of the package, and what it may import.
BESIDE_THE_ROOMS = {
    "__init__": {"layers", "tuner", "formats", "operations", "image"},
    "__main__": {"cli"},
    "orthotune_cli": {"cli"},
}


def _map() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """The table of ARCHITECTURE.md: what each room may import of the package, and of libraries where few are named."""
    below: dict[str, set[str]] = {}
    libraries: dict[str, set[str]] = {}
    for line in (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and re.fullmatch(r"`[a-z_]+(/|\.py)`", cells[0]):
            room = cells[0].strip("`/").removesuffix(".py")
            below[room] = set(below) if cells[2] == "all above" else set(re.findall(r"`(\w+)`", cells[2]))
            if cells[3] != "any":
                libraries[room] = set() if cells[3] == "none" else set(cells[3].split(", "))
    return below | BESIDE_THE_ROOMS, libraries


BELOW, LIBRARIES = _map()
NAMES_BESIDE = {p.relative_to(folder).parts[0].removesuffix(".py") for folder in BESIDE for p in folder.rglob("*.py")}


def _edges(path: Path) -> set[str]:
    """Rooms that a file imports; a public name of the package counts as the room that defines it."""
    edges = set()
    for name in imports(tree_of(path)):
        top, _, rest = name.partition(".")
        if top == "orthotune" and rest != "__version__":
            first = rest.partition(".")[0]
            home = orthotune.HOMES.get(first, first)
            edges.add("tuner" if home == "peft" else home.removeprefix("orthotune.").partition(".")[0])
    return edges


def test_every_room_is_on_the_map() -> None:
    assert set(BELOW) - set(BESIDE_THE_ROOMS) - {"errors"} == set(ROOMS)


def test_the_map_has_no_circle() -> None:
    left = {room: set(below) for room, below in BELOW.items() if room not in BESIDE_THE_ROOMS}
    while free := [room for room, below in left.items() if not below & left.keys()]:
        for room in free:
            del left[room]
    assert not left, f"may import each other: {', '.join(sorted(left))}"


def test_imports_look_down() -> None:
    upward = {named(path): _edges(path) - BELOW[room_of(path)] - {room_of(path), "errors"} for path in MODULES}
    assert len(upward) > 300 and not {path: rooms for path, rooms in upward.items() if rooms}, "imports that look up"


def test_lean_rooms_stay_lean() -> None:
    lean = [path for path in MODULES if room_of(path) in LIBRARIES]
    known = set(sys.stdlib_module_names) | {"orthotune"}
    extra = {named(path): _tops(path) - known - LIBRARIES[room_of(path)] for path in lean}
    assert len(lean) > 50 and not {path: names for path, names in extra.items() if names}, "not allowed there"


def _tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(tree_of(path))}


def test_verbs_import_nothing_heavy_before_they_run() -> None:
    verbs = [path for path in MODULES if room_of(path) == "cli"]
    for path in verbs:
        tree = tree_of(path)
        head = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        # The registries import nothing heavy, which the test of help's imports holds.
        light = ("orthotune.cli.", "orthotune.recipes.registry.", "orthotune.experiments.registry.")
        foreign = {name for name in imports(head) if not f"{name}.".startswith(light)}
        assert {name.partition(".")[0] for name in foreign} <= set(sys.stdlib_module_names) | {"typer"}, named(path)
    assert len(verbs) > 20


def test_two_files_touch_the_tables_of_peft() -> None:
    tables = re.compile(r"\bPEFT_TYPE_TO_\w+MAPPING\b")
    touching = [named(path) for path in MODULES if tables.search(path.read_text(encoding="utf-8"))]
    assert touching == ["src/orthotune/tuner/host_functions.py", "src/orthotune/tuner/register.py"]


def test_the_package_needs_nothing_of_the_clone() -> None:
    """Only ``files.installed_worlds`` knows the wheel of the data; no file imports the benchmark, tools or tests."""
    for path in MODULES:
        allowed = {"orthotune_worlds"} if named(path) == "src/orthotune/files/installed_worlds.py" else set()
        assert not _tops(path) & (NAMES_BESIDE | {"tests", "orthotune_worlds"}) - allowed, named(path)


def test_no_circle_beside_the_package() -> None:
    """Among the scripts and the harness of ``benchmarks`` and among the tools no file imports itself by others."""
    for folder in BESIDE:
        files = {".".join(p.relative_to(folder).with_suffix("").parts): p for p in folder.rglob("*.py")}
        edges = {
            name: {other for other in files for got in imports(tree_of(path))
                   if other != name and (got == other or got.startswith(f"{other}."))}
            for name, path in files.items()
        }  # fmt: skip
        while ends := [name for name, below in edges.items() if not below & edges.keys()]:
            for name in ends:
                del edges[name]
        assert not edges, f"import each other: {', '.join(sorted(edges))}"


def test_importing_the_package_loads_nothing_and_changes_nothing() -> None:
    # a fresh process: this one has imported everything already
    code = (
        "import os, sys; before = dict(os.environ); import orthotune;"
        "heavy = {'torch', 'numpy', 'peft', 'transformers', 'diffusers', 'safetensors', 'typer', 'rich', 'pydantic'};"
        "assert not heavy & set(sys.modules), f'imports {heavy & set(sys.modules)}';"
        "assert dict(os.environ) == before, 'changes the environment'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_reading_a_file_needs_no_host() -> None:
    code = (
        "import sys, orthotune; orthotune.read_adapter, orthotune.ReadOptions, orthotune.write_adapter;"
        "heavy = {'peft', 'transformers', 'diffusers'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_what_type_checkers_see() -> None:
    tree = ast.parse(Path(orthotune.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == orthotune.HOMES
    assert sorted([*seen, "OrthotuneError"]) == orthotune.__all__


@pytest.mark.parametrize("name", orthotune.__all__)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    found = getattr(orthotune, name)
    assert found.__name__ == name and found.__doc__
    assert name in dir(orthotune)


def test_what_is_no_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'frobnicate'"):
        orthotune.frobnicate  # noqa: B018


FIRST_USE = """
import orthotune
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as table
from peft.utils import PeftType
assert table[PeftType.OFT].__module__.startswith("peft."), "importing alone changes PEFT"
orthotune.{name}
assert table[PeftType.OFT].__module__.startswith("orthotune."), "not registered"
"""


@pytest.mark.parametrize("name", ["OFTConfig", "get_peft_model", "PeftModel", "load_adapter", "register()"])
def test_the_first_name_that_needs_the_host_registers(name: str, fresh_after_peft: Run) -> None:
    done = fresh_after_peft(FIRST_USE.format(name=name))
    assert done.returncode == 0, done.stderr
