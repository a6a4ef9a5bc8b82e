"""The image verbs' errors are one line each: libraries that are imported on the way say nothing beside them."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("words", [["train", "control", "--signal", "cany"], ["compare", "subject", "methods=[foo]"]])
def test_a_wrong_word_is_answered_by_one_line(words: list[str]) -> None:
    # In a process of its own: what a library says, it says when it is first imported.
    call = [sys.executable, "-c", "from orthotune.cli.main import main; main()", *words]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
