"""How many public functions document their arguments and errors, room by room.

``python tools/docs/coverage.py [SOURCE]`` counts public functions and methods of public classes. ``Args`` counts those
with two or more arguments that have an ``Args:`` section, in the docstring of the class for ``__init__``. ``Raises``
counts those with a ``raise`` statement in their body that have a ``Raises:`` section.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[tuple[Function, str]]:
    """Public functions and methods of a module, with the docstring that describes them.

    Example:
        >>> [name.name for name, _ in functions(ast.parse("def shown(): ...\\ndef _hidden(): ..."))]
        ['shown']
    """
    for node in tree.body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node, ast.get_docstring(node) or ""
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, Function) and inner.name == "__init__":
                    yield inner, ast.get_docstring(inner) or ast.get_docstring(node) or ""
                elif isinstance(inner, Function) and not inner.name.startswith("_"):
                    yield inner, ast.get_docstring(inner) or ""


def arguments(function: Function) -> int:
    """The number of named arguments, without ``self`` and ``cls``.

    Example:
        >>> arguments(ast.parse("def f(self, a, *, b): ...").body[0])
        2
    """
    found = function.args
    names = [argument.arg for argument in (*found.posonlyargs, *found.args, *found.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")])


def raises(function: Function) -> bool:
    """Whether the body of a function, without functions inside it, has a ``raise`` of a new error.

    Example:
        >>> raises(ast.parse("def f():\\n    raise ValueError").body[0])
        True
    """
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Raise) and node.exc is not None:
            return True
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            waiting.extend(ast.iter_child_nodes(node))
    return False


def coverage(source: Path) -> dict[str, list[int]]:
    """Room -> functions with two or more arguments, those with Args, functions that raise, those with Raises.

    Args:
        source: the folder of the package.
    """
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for path in sorted(source.rglob("*.py")):
        counts = rooms[path.relative_to(source).parts[0].removesuffix(".py")]
        for function, text in functions(ast.parse(path.read_text(encoding="utf-8"))):
            if arguments(function) > 1:
                counts[0] += 1
                counts[1] += "Args:" in text
            if raises(function):
                counts[2] += 1
                counts[3] += "Raises:" in text
    return {room: counts for room, counts in rooms.items() if any(counts)}


def main() -> None:
    """Print the table for the package, or for the folder in the first argument."""
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "src" / "orthotune"
    found = coverage(source)
    found["all"] = [sum(column) for column in zip(*found.values(), strict=True)]
    print(f"{'room':<14} {'Args':>16} {'Raises':>16}")
    for room, (wide, described, raising, named) in found.items():
        args, errors = f"{described} of {wide}", f"{named} of {raising}"
        print(f"{room:<14} {args:>16} {errors:>16}")


if __name__ == "__main__":
    main()
