"""From ``pip install`` in a fresh environment to the first sample, for somebody who uses the page alone.

    python benchmarks/studio_first_sample.py --source . --steps 20

The environment, the page and the run are made anew below a temporary folder. A headless Chromium opens the page, puts a
run of the built-in language model into the queue, asks for samples while it trains, and reads them. Printed are the
seconds of each part, those that the processors worked for the installation, the load of the machine, and the resident
memory of the server and of each process beside it at the moment of the sample. This script needs playwright in its own
environment (``make test-studio`` makes one) and Chromium.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXTRAS = "studio,text,worlds"
#: Milliseconds that the page is waited for.
PATIENCE = 900_000


def installed(folder: Path, source: Path, constraints: Path | None) -> Path:
    """A fresh environment with the package and the built-in worlds; returns its folder of programs.

    Args:
        folder: where it is made.
        source: the clone.
        constraints: versions; None takes the newest ones.
    """
    began, worked = time.monotonic(), _worked()
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    words = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    words += ["-c", str(constraints)] if constraints else []
    subprocess.run([*words, str(source / "worlds"), f"{source}[{EXTRAS}]"], check=True)
    print(f"installation    {time.monotonic() - began:6.0f} s, {_worked() - worked:.0f} s of a processor")
    return folder / "bin"


def _worked() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def first_sample(programs: Path, work: Path, steps: int) -> None:
    """Start the page, put a run into the queue, ask for samples and wait for them.

    Args:
        programs: of the environment.
        work: the workspace.
        steps: of the run.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    began = time.monotonic()
    server = subprocess.Popen(
        [str(programs / "orthotune"), "studio", str(work), "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    try:
        found = re.match(r"http://[\w.]+:\d+", server.stdout.readline())
        assert found, "no address"
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page()
            page.set_default_timeout(PATIENCE)
            page.goto(found[0])
            page.wait_for_selector("#set-steps")
            print(f"page            {time.monotonic() - began:6.0f} s")
            field = page.locator("#set-steps textarea, #set-steps input").first
            field.fill(str(steps))
            field.blur()
            page.locator("#check .note.right").wait_for()
            page.locator("#start").click()
            page.get_by_text("is in the queue").first.wait_for()
            page.get_by_role("tab", name="Run").click()
            page.locator("#jobs .state", has_text="running").first.wait_for()
            page.locator("#sample-now").click()
            page.locator("#live .samples pre").last.wait_for()  # the newest step is shown
            print(f"first sample    {time.monotonic() - began:6.0f} s after the start of the page")
            for name, size in beside(server.pid):
                print(f"memory          {size:6.0f} MB  {name}")
            page.locator("#stop").click()
            page.locator("#jobs .state", has_text="stopped").or_(
                page.locator("#jobs .state", has_text="finished")
            ).first.wait_for()
            browser.close()
    finally:
        server.terminate()
        server.wait()


def beside(server: int) -> list[tuple[str, float]]:
    """The resident megabytes of a server and of the processes that it started, and of the training.

    Args:
        server: the number of its process.
    """
    parents: dict[int, int] = {}
    lines: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    wanted = {server}
    while more := {one for one, parent in parents.items() if parent in wanted} - wanted:
        wanted |= more
    found = []
    for number in sorted(wanted):
        status = Path(f"/proc/{number}/status").read_text()
        size = re.search(r"VmRSS:\s+(\d+) kB", status)
        words = re.search(r"orthotune\S* ?\S+", lines[number])
        found.append((words[0] if words else lines[number][:60], int(size[1]) / 1000 if size else 0.0))
    return found


def main(words: list[str] | None = None) -> Any:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--source", type=Path, default=Path(), help="the clone")
    parser.add_argument("--constraints", type=Path, help="versions to install")
    parser.add_argument("--programs", type=Path, help="folder of programs of an environment that is there already")
    parser.add_argument("--steps", type=int, default=200, help="of the run")
    given = parser.parse_args(words)
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"machine         {os.cpu_count()} processors, load {load} at the beginning")
    with tempfile.TemporaryDirectory() as folder:
        programs = given.programs or installed(Path(folder, "environment"), given.source.resolve(), given.constraints)
        work = Path(folder, "work")
        work.mkdir()
        first_sample(programs.resolve(), work, given.steps)


if __name__ == "__main__":
    main()
