"""Names and docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.source import MODULES, ROOT, SHARED, named, tree_of

FORBIDDEN = {"util", "utils", "helper", "helpers", "common", "misc", "stuff", "base2"}
#: Hooks of torch, PEFT and transformers whose meaning is theirs; saying it again would drift.
HOOKS = re.compile(r"forward|backward|setup_context|train|extra_repr|on_\w+")


def test_no_drawer_for_everything() -> None:
    folders = [ROOT / name for name in ("src", "tests", "benchmarks", "tools", "worlds", "examples")]
    paths = [p.relative_to(ROOT) for folder in folders for p in folder.rglob("*.py")]
    bad = [p for p in paths if FORBIDDEN & {Path(part).stem for part in p.parts}]
    assert not bad, f"say what is in it: {', '.join(map(str, bad))}"


def test_public_names_have_docstrings() -> None:
    found = {named(path): list(_bare(tree_of(path))) for path in MODULES + SHARED}
    assert len(found) > 300 and not {path: names for path, names in found.items() if names}, "no docstring"


def _bare(tree: ast.Module) -> Iterator[str]:
    if tree.body and ast.get_docstring(tree) is None:
        yield "the module"
    yield from (name for name, node in _public(tree) if ast.get_docstring(node) is None)


def _public(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                yield from ((f"{node.name}.{inner.name}", inner) for inner in _own_methods(node))


def _own_methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Public methods that do not fill in what a base class here has described."""
    for inner in node.body:
        if not isinstance(inner, ast.FunctionDef) or inner.name.startswith("_") or HOOKS.fullmatch(inner.name):
            continue
        if not node.bases or inner.name not in _described():
            yield inner


@cache
def _described() -> set[str]:
    classes = [n for path in MODULES for n in tree_of(path).body if isinstance(n, ast.ClassDef)]
    methods = [inner for node in classes for inner in node.body if isinstance(inner, ast.FunctionDef)]
    return {method.name for method in methods if ast.get_docstring(method)}
