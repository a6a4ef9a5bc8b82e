"""The output of a command as on a terminal, as an SVG image: `python tools/docs/terminal_image.py OUT.svg COMMAND...`.

The command runs on a pseudo-terminal of 110 columns, so that colours are on; what it prints is drawn by rich. Lines for
its standard input may be given with `--type`, each typed after the prompt has been quiet for a moment.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import select
import struct
import sys
import termios
from fcntl import ioctl
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 110, 40
#: Seconds without output after which the command is taken to wait for input.
QUIET = 12.0


def output_of(command: list[str], lines: list[str]) -> str:
    """What a command prints on a terminal.

    Args:
        command: with its arguments.
        lines: typed one by one, each once nothing was printed for a moment.
    """
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
        os.execvp(command[0], command)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    printed, waiting = b"", list(lines)
    while True:
        ready, _, _ = select.select([terminal], [], [], QUIET if printed else None)
        if not ready:
            if waiting:
                os.write(terminal, (waiting.pop(0) + "\n").encode())
            continue
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux ends a pseudo-terminal so
            break
        if not part:
            break
        printed += part
    os.waitpid(child, 0)
    return printed.decode(errors="replace").replace("\r\n", "\n")


def main() -> None:
    """Read the command line, run the command and write the image."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    parser.add_argument("--type", action="append", default=[], dest="lines", metavar="LINE")
    parser.add_argument("--title", default="")
    chosen = parser.parse_args()
    if not chosen.command:
        sys.exit("name a command after the image")
    text = output_of(chosen.command, chosen.lines)
    console = Console(record=True, width=COLUMNS, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    # A carriage return writes over the line: what stands last is what was seen.
    for line in text.rstrip().split("\n"):
        console.print(Text.from_ansi(line.rsplit("\r", 1)[-1]))
    image = console.export_svg(title=chosen.title or " ".join([Path(chosen.command[0]).name, *chosen.command[1:3]]))
    # rich names fonts at an address of the network; the page takes the reader's own.
    chosen.out.write_text(re.sub(r"@font-face \{.*?\}", "", image, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
