"""Files are written, JSON is read, and systems are told apart in one room: ``orthotune.files``."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.support.source import MODULES, imports, named, room_of, tree_of

#: Calls that belong to the room, as they are written, and what to call instead.
CALLS = {
    **dict.fromkeys(("os.replace", "os.rename", "os.fsync", "shutil.move"), "files.atomic.atomic_write"),
    **dict.fromkeys(("json.load", "json.loads"), "files.json_file.read_json or json_object"),
    "json.dump": "files.json_file.write_json",
    **dict.fromkeys(("csv.writer", "csv.DictWriter"), "files.tables.write_table"),
    **dict.fromkeys(("csv.reader", "csv.DictReader"), "files.tables.read_table"),
    **dict.fromkeys(("os.getloadavg", "os.sched_getaffinity", "os.cpu_count", "os.getuid"), "files.platforms"),
}
#: Methods of whatever object.
METHODS = {
    "rename": "files.atomic.atomic_write",
    "write_text": "files.atomic.write_text",
    "write_bytes": "files.atomic.write_bytes",
}
#: Modules that some systems lack, and those that make temporary files.
LACKING = {"fcntl", "msvcrt", "resource", "termios", "pwd", "grp", "winreg", "tempfile"}
#: file -> what is allowed there, and why.
ALLOWED = {
    "src/orthotune/runs/metrics_log.py": {"open"},  # a log grows line by line; a line is complete or cut off again
    "src/orthotune/studio/runner.py": {"open"},  # the log of a run: what its process prints
    "src/orthotune/worlds/image_folders.py": {"write_text", "write_bytes"},  # into the folder of an atomic_write
}


def _found(tree: ast.AST) -> Iterator[tuple[str, int, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        written = ast.unparse(node.func)
        if written in CALLS:
            yield written, node.lineno, CALLS[written]
        elif isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "atomic"):
                yield node.func.attr, node.lineno, METHODS[node.func.attr]
        elif isinstance(node.func, ast.Attribute) and node.func.attr == "replace" and len(node.args) == 1:
            if isinstance(node.func.value, ast.Name) and not node.keywords and node.func.value.id == "partial":
                yield "replace", node.lineno, "files.atomic.atomic_write"
        elif written.split(".")[-1] == "open" and any(_writes(argument) for argument in node.args):
            yield "open", node.lineno, "files.atomic.atomic_write"
    for name in imports(tree):
        if (top := name.partition(".")[0]) in LACKING:
            yield top, 0, "files.platforms"


def _writes(mode: ast.expr) -> bool:
    value = mode.value if isinstance(mode, ast.Constant) else None
    return isinstance(value, str) and bool(set(value) & set("wax+")) and set(value) <= set("rwaxbt+")


def test_only_the_room_of_files_writes_reads_json_and_knows_systems() -> None:
    others = [path for path in MODULES if room_of(path) != "files"]
    bad = [
        f"{named(path)}, line {line}: {call} (use {instead})"
        for path in others
        for call, line, instead in _found(tree_of(path))
        if call not in ALLOWED.get(named(path), set())
    ]
    assert len(others) > 300 and not bad, "; ".join(bad)


def test_the_rule_sees_what_it_forbids() -> None:
    code = """
import fcntl, os, json
os.replace(a, b); json.load(file); path.rename(b); path.write_text("x"); open(a, "w"); path.open("ab"); json.loads(t)
"""
    seen = {call for call, _, _ in _found(ast.parse(code))}
    assert seen == {"os.replace", "json.load", "rename", "write_text", "open", "fcntl", "json.loads"}
    assert not list(_found(ast.parse('open(a); path.open("rb"); text.replace("a", "b"); write_text(path, "x")')))
