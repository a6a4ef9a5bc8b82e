"""A real headless Chromium: what a page says of itself after clicks, and how it looks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: folder that screenshots are kept in; none are made without it
SCREENSHOTS = "ORTHOTUNE_SCREENSHOTS"
needed = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


def _run(folder: Path, page: Path, width: int, height: int, *words: str) -> str:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
               f"--window-size={width},{height}", f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    done = subprocess.run([str(CHROMIUM), *options, *words, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-500:]
    return done.stdout


def clicked(page: Path, folder: Path, script: str, width: int = 390) -> dict[str, Any]:
    """What ``script`` puts into its object ``said`` when it runs at the end of the page."""
    last = "document.body.innerHTML = '<pre id=\"said\">' + JSON.stringify(said).replace(/</g, '&lt;') + '</pre>';"
    text = page.read_text(encoding="utf-8").replace(
        "</body>", f"<script>const said = {{}};\n{script}\n{last}</script></body>"
    )
    copy = folder / "clicked.html"
    copy.write_text(text, encoding="utf-8")
    found = re.search(r'<pre id="said">(.*?)</pre>', _run(folder, copy, width, 900, "--dump-dom"))
    assert found, "the script did not reach its end"
    said: dict[str, Any] = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return said


def keep_screenshots(page: Path, folder: Path, name: str, height: int = 2600) -> list[Path]:
    """Pictures of the page, as wide as a phone and as a desk, light and dark, where the environment asks for them."""
    if not os.environ.get(SCREENSHOTS):
        return []
    home, made = Path(os.environ[SCREENSHOTS]), []
    home.mkdir(parents=True, exist_ok=True)
    text = page.read_text(encoding="utf-8")
    for theme in ("light", "dark"):
        copy = folder / f"{theme}.html"
        chosen = text.replace('id="auto" checked', 'id="auto"').replace(f'id="{theme}"', f'id="{theme}" checked')
        copy.write_text(chosen, encoding="utf-8")
        for width in (390, 1280):
            made.append(home / f"{name}-{theme}-{width}.png")
            _run(folder, copy, width, height, f"--screenshot={made[-1]}")
            assert made[-1].stat().st_size > 10_000
    return made
