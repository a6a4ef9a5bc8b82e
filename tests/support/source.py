"""The source tree as the house rules see it."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
MODULES = sorted(SRC.rglob("*.py"))
#: Folders of scripts beside the package, from which each script imports its neighbours by their names.
BESIDE = [ROOT / "benchmarks", ROOT / "tools" / "worlds", ROOT / "tools" / "release"]
#: Modules outside of the package that are more than one script.
SHARED = sorted(p for name in ("benchmarks/harness", "tools", "worlds/src") for p in (ROOT / name).rglob("*.py"))
ROOMS = sorted(p.name for p in (SRC / "orthotune").iterdir() if p.is_dir() and any(p.rglob("*.py")))


@cache
def tree_of(path: Path) -> ast.Module:
    """The syntax tree of a file, parsed once for all tests."""
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    """How a test is called that looks at one file."""
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The folder of ``orthotune`` that a file lives in; a file beside the folders is a room of its own."""
    parts = path.relative_to(SRC).with_suffix("").parts
    return parts[0] if parts[0] != "orthotune" else parts[1]


def imports(tree: ast.AST) -> Iterator[str]:
    """Dotted names that are imported anywhere in the tree, functions included; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def project_files() -> list[Path]:
    """Every file of the project that is, or will be, tracked; without git all that is not obviously built."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        built = {".git", ".venv", "runs", "build", "dist", "__pycache__"}
        found = (p for p in ROOT.rglob("*") if not built & set(p.relative_to(ROOT).parts))
        return [p for p in found if p.is_file() and ".pyc" not in p.name and "_cache" not in p.as_posix()]
    return [ROOT / name for name in listed if (ROOT / name).is_file()]
