"""A studio in a process of its own, and a real headless Chromium that looks at it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.report.chromium import CHROMIUM, SCREENSHOTS
from tests.support.source import ROOT

#: Milliseconds that the page is waited for: a slow machine is no fault of it.
PATIENCE = 900_000
WIDTHS = (1280, 390)


def environment() -> dict[str, str]:
    """That of a process which finds the package wherever it works."""
    places = [str(ROOT / "src"), str(ROOT / "worlds" / "src"), str(ROOT)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}


class Studio:
    """A server that can be killed and started again at the same port.

    Args:
        folders: that it is started with.
        more: environment of the server.
    """

    def __init__(self, *folders: Path, **more: str) -> None:
        self.folders, self.more = folders, more
        self.process: subprocess.Popen[str] | None = None
        self.address, self.port = "", "0"

    def start(self) -> None:
        """Start it and wait for its address."""
        words = [sys.executable, "-m", "orthotune.cli.main", "studio", *map(str, self.folders), "--port", self.port]
        self.process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment() | self.more
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.match(r"http://[\w.]+:(\d+)", line)
        assert found, line + self.process.stdout.read()
        self.address, self.port = found[0], found[1]

    def kill(self) -> None:
        """End it as a machine that runs out of memory would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextmanager
def started(*folders: Path, **more: str) -> Iterator[Studio]:
    """A server for a block."""
    studio = Studio(*folders, **more)
    studio.start()
    try:
        yield studio
    finally:
        studio.kill()


class Browser:
    """A headless Chromium with what it was asked to fetch, and what went wrong on its pages."""

    def __init__(self, playwright: Any) -> None:
        self.browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu"])
        self.fetched: list[str] = []
        self.faults: list[str] = []

    def open(self, address: str, width: int = WIDTHS[0], **context: Any) -> Any:
        """A new page, in a session of its own."""
        page = self.browser.new_context(viewport={"width": width, "height": 900}, **context).new_page()
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.fetched.append(request.url))
        page.on("pageerror", lambda fault: self.faults.append(str(fault)))
        page.on("dialog", lambda dialog: (self.faults.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.goto(address)
        page.wait_for_selector("#set-method")
        return page

    def close_pages(self) -> None:
        """Close all pages, and forget what they fetched and what went wrong on them."""
        for context in self.browser.contexts:
            context.close()
        self.fetched.clear()
        self.faults.clear()


def tab(page: Any, name: str) -> None:
    """Open a tab of the page."""
    page.get_by_role("tab", name=name).click()


def write(page: Any, key: str, value: str) -> None:
    """Fill in a field of the form and leave it."""
    field = page.locator(f"#set-{key} textarea, #set-{key} input").first
    field.fill(value)
    field.blur()
    page.wait_for_function("([key, value]) => document.querySelector('#recipe-text').innerText.includes(`${key}: `)",
                           arg=[key, value])  # fmt: skip


def keep(page: Any, name: str) -> None:
    """Screenshots at two widths, light and dark, where the environment asks for them."""
    if not os.environ.get(SCREENSHOTS):
        return
    folder = Path(os.environ[SCREENSHOTS])
    folder.mkdir(parents=True, exist_ok=True)
    before = page.viewport_size
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        for theme in ("light", "dark"):
            page.evaluate(f"document.body.classList.toggle('dark', {str(theme == 'dark').lower()})")
            time.sleep(0.4)
            page.screenshot(path=str(folder / f"studio-{name}-{theme}-{width}.png"), full_page=True)
    page.evaluate("document.body.classList.remove('dark')")
    page.set_viewport_size(before)
