"""Heat maps, histograms and curves are what the records say, and work in a real browser without a script."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orthotune.report import write_report
from orthotune.report.curves import charts, frontier, smoothed
from orthotune.report.heat_map import heat_maps, histograms

ROWS = [
    {
        "layer": f"model.layers.{depth}.{module}", "part": "", "side": "in", "shared": False, "block_size": 4,
        "blocks": 3, "parameters": 18, "angle_mean": 0.1 * (depth + 1), "angle_max": 0.5, "dead": 0.0,
        "orthogonality_error": 10.0 ** -(depth + 5), "angle_counts": [3, 2, 1, 0],
    }
    for depth in range(3) for module in ("self_attn.q_proj", "mlp.up_proj")
]  # fmt: skip
RUN = {"recipe": "sft", "method": "oft", "settings": {"model": "m"}, "versions": {}, "steps": 40, "drift": 0.02}
LINES = [
    {
        "step": step,
        "train_loss": 3 - step / 40 + (step % 2) / 5,
        **({"new_nats": 3 - step / 50} if not step % 10 else {}),
    }
    for step in range(1, 41)
] + [{"step": step, "diagnosis": {"angle_mean": step / 100, "angle_max": step / 50}} for step in (10, 20, 40)]
ADVICE = [{"warning": "W", "layers": ["a"], "remedy": "R"}]


def test_a_map_has_a_cell_for_each_layer_and_shades_by_size() -> None:
    maps = {one["key"]: one for one in heat_maps(ROWS[:-1])}
    assert maps["angle_mean"]["depths"] == [0, 1, 2]
    lines = dict(maps["angle_mean"]["lines"])
    assert [cell["value"] for cell in lines["self_attn.q_proj"]] == pytest.approx([0.1, 0.2, 0.3])
    assert lines["mlp.up_proj"][2] is None
    assert lines["self_attn.q_proj"][2]["shade"] == 1
    # a tenth each time: even steps on the logarithm
    assert [cell["shade"] for cell in dict(maps["orthogonality_error"]["lines"])["self_attn.q_proj"]] == [1, 0.5, 0]
    assert "dead" not in maps  # nothing to see


def test_histograms_add_up_the_depths_of_a_module() -> None:
    (one, _) = histograms(ROWS)
    assert [bar["label"].split(": ")[1] for bar in one["bars"]] == ["9 planes", "6 planes", "3 planes", "0 planes"]


def test_curves_hold_every_step_and_smoothing_is_an_average() -> None:
    losses, angles = charts(LINES)
    assert [curve["name"] for curve in losses["curves"]] == ["training batch", "new domain, held out"]
    training = losses["curves"][0]["paths"]
    assert [path["weight"] for path in training] == [0.0, 0.6, 0.9]
    assert training[0]["path"].count("L") == 39
    assert len(angles["curves"][0]["paths"][0]["dots"]) == 3
    assert smoothed([0.0, 1.0], 0.5) == pytest.approx([0, 2 / 3])
    assert charts([{"step": 1, "train_loss": float("nan")}]) == []


def test_a_frontier_needs_two_runs() -> None:
    row = {"method": "oft", "learning_rate": 0.1, "gain": 0.4, "forgetting": 0.1}
    assert frontier([row]) is None
    found = frontier([row, row | {"method": "lora", "gain": 0.5, "forgetting": 0.3}])
    assert found is not None and found["points"][1]["x"] > found["points"][0]["x"]
    assert found["points"][1]["y"] < found["points"][0]["y"]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 41, "tr')
    adapter = {"layers": ROWS, "angle_mean": 0.2, "angle_max": 0.5, "advice": ADVICE}
    return write_report(tmp_path, adapter=adapter)


def test_an_adapter_alone_has_a_page(tmp_path: Path) -> None:
    found = write_report(tmp_path, adapter={"layers": ROWS, "angle_mean": 0.2, "angle_max": 0.5}).read_text()
    assert f"Adapter: {tmp_path.name}" in found and "Depth and module" in found


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CLICKS = """
const shown = name => [...document.querySelectorAll(name)].some(g => getComputedStyle(g).display !== 'none');
const said = {before: shown('.s2'), wide: document.documentElement.scrollWidth - innerWidth};
document.querySelector('label[for=smooth2]').click(); said.after = shown('.s2');
const paper = () => getComputedStyle(document.body).backgroundColor;
document.querySelector('label[for=dark]').click(); said.dark = paper();
document.querySelector('label[for=light]').click(); said.light = paper();
const cells = [...document.querySelectorAll('details[open] td.cell')].slice(0, 6);
said.shades = new Set(cells.map(cell => getComputedStyle(cell).backgroundColor)).size;
const dot = document.querySelector('.s0 .dot'); dot.focus();
said.tip = getComputedStyle(dot.querySelector('.tip')).visibility;
document.body.innerHTML = '<pre id="said">' + JSON.stringify(said) + '</pre>';
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_it_and_its_switches_work(page: Path, tmp_path: Path) -> None:
    clicked = tmp_path / "clicked.html"
    clicked.write_text(page.read_text().replace("</body>", f"<script>{CLICKS}</script></body>"))
    words = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=390,900",
             f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", clicked.as_uri()]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="said">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-500:]
    said: dict[str, Any] = json.loads(found[1])
    assert (said["before"], said["after"]) == (False, True)
    assert said["dark"] == "rgb(20, 23, 27)" and said["light"] == "rgb(255, 255, 255)"
    assert said["wide"] <= 0  # nothing beside the screen of a phone
    assert said["shades"] == 3 and said["tip"] == "visible"
