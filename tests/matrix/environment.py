"""The environment of one cell: its Python, its folder, what is installed in it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

from tests.matrix.cells import ANY, EXTRAS, ROOT, Cell


class Broken(Exception):
    """A cell that cannot be set up; the message is one line."""


def child_environment() -> dict[str, str]:
    """Ours without the paths of modules, so that a cell sees its own libraries alone."""
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}


def _pythons(version: str) -> Iterator[str]:
    yield from (f"python{version}", "python3", sys.executable)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from map(str, sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True))


def find_python(version: str) -> str:
    """A Python of this version that can make environments: on the path, or one of pyenv's."""
    ask = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for name in _pythons(version):
        try:
            asked = subprocess.run([name, "-c", ask], capture_output=True, text=True, env=child_environment())
        except OSError:
            continue  # no such program
        if asked.returncode == 0 and asked.stdout.strip() == version:
            return name
    raise Broken(f"no Python {version} with venv and pip was found")


def install(cell: Cell, folder: Path) -> Path:
    """The Python of the cell's environment; it is made, or made anew, when what it is made from has changed."""
    constraints, python = cell.constraints(), folder / "bin" / "python"
    projects = [(ROOT / folder / "pyproject.toml").read_text(encoding="utf-8") for folder in ("", "worlds")]
    made_from = [constraints, cell.python, cell.torch, *projects, *EXTRAS]
    if ANY in (cell.torch, cell.versions):
        made_from.append(str(date.today()))
    stamp, mark = folder / ".installed", hashlib.sha256("\n".join(made_from).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == mark:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _run([find_python(cell.python), "-m", "venv", str(folder)], folder)
    (folder / "constraints.txt").write_text(constraints, encoding="utf-8")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    # torch goes first and alone: with its version settled the resolver has nothing to search.
    _run([*pip, "install", "--quiet", "torch" if cell.torch == ANY else f"torch=={cell.torch}"], folder)
    project = ["-e", str(ROOT / "worlds"), "-e", f"{ROOT}[{','.join(EXTRAS)}]"]
    _run([*pip, "install", "--quiet", "-c", str(folder / "constraints.txt"), *project], folder)
    _run([*pip, "check"], folder)
    stamp.write_text(mark)
    return python


def installed(python: Path) -> dict[str, str]:
    """Versions by name, with that of Python itself."""
    list_all = [str(python), "-m", "pip", "--disable-pip-version-check", "list", "--format", "json"]
    listed = json.loads(subprocess.run(list_all, capture_output=True, text=True, check=True).stdout)
    own = subprocess.run([str(python), "-c", "import platform; print(platform.python_version())"],
                         capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    return {"python": own} | {row["name"].lower(): row["version"] for row in listed}


def _run(command: list[str], folder: Path) -> None:
    """Run it; what it said goes to a file beside the environment, and its last error into the exception."""
    done = subprocess.run(command, capture_output=True, text=True, env=child_environment(), stdin=subprocess.DEVNULL)
    if done.returncode == 0:
        return
    said = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    log = folder.with_name(f"{folder.name}-install.log")
    log.write_text("\n".join([" ".join(command), *said]) + "\n", encoding="utf-8")
    errors = [line for line in said if line.startswith("ERROR:")] or said or [f"status {done.returncode}"]
    raise Broken(f"not installed: {errors[-1].removeprefix('ERROR: ')} (all of it: {log})")
