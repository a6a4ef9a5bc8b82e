"""The image verbs' errors are one line each: libraries that are imported on the way say nothing beside them."""

from __future__ import annotations

import json
import subprocess
import sys

CODE = """
import json, os, sys
from orthotune.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["orthotune", *words]
    try:
        main()
    except SystemExit as done:
        print(done.code)
sys.stdout.flush()
sys.stderr.flush()
os._exit(0)  # what Python takes down at its end takes a second
"""


def test_a_wrong_word_is_answered_by_one_line() -> None:
    # In a process of its own: what a library says, it says when it is first imported, by whichever verb.
    calls = [["train", "control", "--signal", "cany"], ["compare", "subject", "methods=[foo]"]]
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(calls)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.split() == ["2", "2"], done.stderr
    first, second = done.stderr.strip().splitlines()
    assert "cany" in first and "foo" in second


def test_a_dry_run_says_what_it_needs_and_nothing_else() -> None:
    code = CODE.replace("print(done.code)", "assert not done.code")
    calls = [["train", "subject", "--dry-run"]]
    done = subprocess.run([sys.executable, "-c", code, json.dumps(calls)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    # Convolutions whose patches are rotated keep tensors, too, whose number follows from shapes alone.
    assert "activations" in done.stdout and "unknown" not in done.stdout
