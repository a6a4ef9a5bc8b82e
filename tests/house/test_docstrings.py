"""What a docstring says of arguments is about arguments that the function has."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

from tests.support.source import MODULES, named, tree_of

SECTION = re.compile(r"^Args:\n((?:(?: .*)?\n)+)", flags=re.MULTILINE)


def documented(text: str) -> list[str]:
    """The names in the ``Args:`` section of a docstring."""
    found = SECTION.search(inspect.cleandoc(text) + "\n")
    return re.findall(r"^    \*{0,2}(\w+)(?: \(.*\))?:", found[1], flags=re.MULTILINE) if found else []


def unknown(tree: ast.AST) -> Iterator[str]:
    """``function: name`` of documented arguments that a function does not have."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            names = {one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
            names |= {one.arg for one in (given.vararg, given.kwarg) if one is not None}
            yield from (
                f"{node.name}: {name}" for name in documented(ast.get_docstring(node) or "") if name not in names
            )


def test_documented_arguments_exist() -> None:
    found = {named(path): list(unknown(tree_of(path))) for path in MODULES}
    assert len(found) > 300 and not {path: names for path, names in found.items() if names}


def test_an_argument_that_does_not_exist_is_found() -> None:
    text = "Do.\n\n    Args:\n        a: one.\n            more: text.\n        d: none.\n        **c: rest.\n    "
    code = f'def f(a, *, b, **c):\n    """{text}"""'
    assert list(unknown(ast.parse(code))) == ["f: d"]
