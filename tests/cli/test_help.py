"""Help is instant: it must not load torch, and it names every verb."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

# in the order of help
VERBS = [
    "train", "compare", "evaluate", "chat", "generate", "draw", "caption", "presets", "inspect", "identify",
    "merge", "combine", "convert", "export", "report", "studio", "demo", "toy", "bench",
]  # fmt: skip

CODE = """
import contextlib, io, json, sys
from orthotune.cli.main import main
shown = []
for args in json.loads(sys.argv[1]):
    sys.argv = ["orthotune", *args]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            main()
        except SystemExit as done:
            assert not done.code, (args, done.code)
    shown.append(out.getvalue())
    heavy = {"torch", "peft", "transformers", "numpy", "jinja2", "safetensors"} & set(sys.modules)
    assert not heavy, f"{args} imported {heavy}"
json.dump(shown, sys.stdout)
"""


ASKED = [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)]
ASKED += [["train", "sft", "--help"], ["compare", "sft", "--help"], ["evaluate", "canny", "--help"]]
ASKED += [["compare", "control", "--help"], ["evaluate", "drift", "--help"], ["evaluate", "forgetting", "--help"]]
ASKED += [["train", recipe, "--help"] for recipe in ("subject", "control", "t2i", "magnitude")]
ASKED += [["train", "sft", "--keys"], ["train", "t2i", "lr", "--keys"]]


@pytest.mark.parametrize("module", ["orthotune", "orthotune.cli.main", "orthotune_cli.main"])
def test_the_command_line_is_a_module(module: str) -> None:
    """Launchers start a module; scripts of an earlier release name the last one."""
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("orthotune "), done.stderr


def test_help_loads_nothing_heavy() -> None:
    # one process for all of them: what one has not loaded, the next one finds not loaded
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(ASKED)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for args, shown in zip(ASKED, json.loads(done.stdout), strict=True):
        if args == ["--help"]:
            places = [shown.find(f"│ {verb} ") for verb in VERBS]
            assert places == sorted(places)
            assert places[0] > 0
        elif args == ["--version"]:
            assert shown.startswith("orthotune ")
        elif "--keys" in args:
            assert "learning_rate" in shown
        else:
            assert f"orthotune {args[0]}" in shown, args


def test_out_and_output_are_one_option() -> None:
    """A verb that writes to a place takes either word for it."""
    from typer.main import get_command

    from orthotune.cli.main import app

    found, left = 0, [get_command(app)]
    while left:
        command = left.pop()
        left += getattr(command, "commands", {}).values()
        for option in command.params:
            words = {*option.opts, *option.secondary_opts} & {"--out", "--output"}
            found += bool(words)
            assert len(words) in (0, 2), (command.name, words)
    assert found > 10
