"""Help is instant: it must not load torch, and it names every verb."""

from __future__ import annotations

import subprocess
import sys

import pytest

# in the order of help
VERBS = [
    "train", "compare", "evaluate", "presets", "inspect", "identify", "merge", "combine", "convert", "export", "report",
    "demo", "toy", "bench",
]  # fmt: skip

CODE = """
import sys
from orthotune.cli.main import main
sys.argv = ["orthotune", *{args!r}]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
heavy = {{"torch", "peft", "transformers", "numpy", "jinja2", "safetensors"}} & set(sys.modules)
assert not heavy, f"imported {{heavy}}"
"""


ASKED = [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]
ASKED += [["train", "sft", "--help"], ["compare", "sft", "--help"], ["evaluate", "canny", "--help"]]
ASKED += [["compare", "control", "--help"], ["evaluate", "drift", "--help"], ["evaluate", "forgetting", "--help"]]
ASKED += [["train", recipe, "--help"] for recipe in ("subject", "control", "t2i", "magnitude")]


@pytest.mark.parametrize("module", ["orthotune", "orthotune.cli.main", "orthotune_cli.main"])
def test_the_command_line_is_a_module(module: str) -> None:
    """Launchers start a module; scripts of an earlier release name the last one."""
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("orthotune "), done.stderr


@pytest.mark.parametrize("args", ASKED, ids=" ".join)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(args=args)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if args == ["--help"]:
        places = [done.stdout.find(f"│ {verb} ") for verb in VERBS]
        assert places == sorted(places)
        assert places[0] > 0
    elif args == ["--version"]:
        assert done.stdout.startswith("orthotune ")
    else:
        assert f"orthotune {args[0]}" in done.stdout
