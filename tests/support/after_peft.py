"""Code in a fresh process that has imported torch and PEFT alone, which takes five seconds: once for all of them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Run = Callable[..., subprocess.CompletedProcess[str]]

#: Reads lines with code, the words of its command line and where its words go; each is run by a fork.
SERVER = """
import json, os, sys, traceback
import torch, peft
for line in sys.stdin:
    code, words, place = json.loads(line)
    child = os.fork()
    if child == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{place}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv, status = ["-c", *words], 0
        try:
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@contextmanager
def after_peft(folder: Path) -> Iterator[Run]:
    """A function that runs code in such a process and gives back how it ended, as ``subprocess.run`` does.

    Args:
        folder: for what the processes print.
    """
    server: subprocess.Popen[str] | None = None
    count = 0

    def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
        nonlocal server, count
        if server is None:
            call = [sys.executable, "-W", "ignore", "-c", SERVER]
            server = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdin is not None and server.stdout is not None
        count += 1
        place = folder / str(count)
        print(json.dumps([code, words, str(place)]), file=server.stdin, flush=True)
        ended = server.stdout.readline()
        assert ended, "the process that imported PEFT is gone"
        out, err = (Path(f"{place}.{name}").read_text(encoding="utf-8") for name in ("out", "err"))
        return subprocess.CompletedProcess(code, int(ended), out, err)

    try:
        yield run
    finally:
        if server is not None:
            server.kill()
            server.communicate()
