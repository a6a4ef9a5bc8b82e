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
    code = 0
    try:
        main()
    except SystemExit as done:
        code = done.code or 0
    for stream in (sys.stdout, sys.stderr):
        print(f"ended with {code}", file=stream, flush=True)
os._exit(0)  # what Python takes down at its end takes a second
"""


def test_a_wrong_word_is_answered_by_one_line_and_a_dry_run_says_what_it_needs_and_nothing_else() -> None:
    # In a process of its own: what a library says, it says when it is first imported, by whichever verb; in one
    # process, because importing them takes most of the time.
    calls = [
        ["train", "control", "--signal", "cany"],
        ["compare", "subject", "methods=[foo]"],
        ["train", "subject", "--dry-run"],
    ]
    done = subprocess.run([sys.executable, "-c", CODE, json.dumps(calls)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    first, after_first, second, after_second, after_dry = done.stderr.splitlines()
    assert "cany" in first and "foo" in second
    assert (after_first, after_second, after_dry) == ("ended with 2", "ended with 2", "ended with 0")
    nothing, still_nothing, needs, end = done.stdout.split("ended with ")
    assert (nothing, still_nothing, needs[:2], end) == ("", "2\n", "2\n", "0\n")
    # Convolutions whose patches are rotated keep tensors, too, whose number follows from shapes alone.
    assert "activations" in needs and "unknown" not in needs
