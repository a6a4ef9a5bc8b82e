"""Heat maps, histograms and curves are what the records say, and work in a real browser without a script."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from orthotune.report import write_report
from orthotune.report.curves import charts, smoothed
from orthotune.report.frontier import frontier
from orthotune.report.heat_map import heat_maps
from orthotune.report.histograms import histograms
from tests.report import chromium

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
    # of four bars from 0 to pi the last one is empty in all modules, so that the axis ends before it
    assert [bar["label"].split(": ")[1] for bar in one["bars"]] == ["9 planes", "6 planes", "3 planes"]
    assert one["top"] == pytest.approx(math.pi * 3 / 4)


def test_histograms_of_all_modules_have_the_axis_of_the_largest_angle() -> None:
    rows = [row | {"angle_histogram": counts} for row, counts in zip(ROWS, ([4, 0], [1, 1]), strict=False)]
    one, other = histograms(rows, 0.25)
    assert (one["top"], other["top"]) == (0.25, 0.25) and len(one["bars"]) == len(other["bars"]) == 2
    assert one["bars"][1]["label"] == "0.125 to 0.25 rad: 0 planes" and one["bars"][0]["height"] == 1


def test_curves_hold_every_step_and_smoothing_is_an_average() -> None:
    losses, angles = charts(LINES)
    assert [curve["name"] for curve in losses["curves"]] == ["training batch", "target domain, held out"]
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


CLICKS = """
const shown = name => [...document.querySelectorAll(name)].some(g => getComputedStyle(g).display !== 'none');
said.before = shown('.s2'); said.wide = document.documentElement.scrollWidth - innerWidth;
document.querySelector('label[for=smooth2]').click(); said.after = shown('.s2');
const paper = () => getComputedStyle(document.body).backgroundColor;
document.querySelector('label[for=dark]').click(); said.dark = paper();
document.querySelector('label[for=light]').click(); said.light = paper();
const cells = [...document.querySelectorAll('details[open] td.cell')].slice(0, 6);
said.shades = new Set(cells.map(cell => getComputedStyle(cell).backgroundColor)).size;
const dot = document.querySelector('.s0 .dot'); dot.focus(); said.focused = document.hasFocus();
said.tip = getComputedStyle(dot.querySelector('.tip')).visibility;
"""


@chromium.needed
def test_a_browser_shows_it_and_its_switches_work(page: Path, tmp_path: Path) -> None:
    for _ in range(3):  # on a busy machine the script may run before the window has the focus, which no script can take
        said = chromium.clicked(page, tmp_path, CLICKS)
        if said["focused"]:
            break
    assert (said["before"], said["after"]) == (False, True)
    assert said["dark"] == "rgb(20, 23, 27)" and said["light"] == "rgb(255, 255, 255)"
    assert said["wide"] <= 0  # nothing beside the screen of a phone
    assert said["shades"] == 3 and said["tip"] == "visible"
    chromium.keep_screenshots(page, tmp_path, "text-run", 2200)


def test_blocks_that_go_down_and_up_again_have_places_of_their_own() -> None:
    names = [
        f"{way}_blocks.{block}.attentions.{n}.transformer_blocks.0.{part}"
        for way in ("down", "up") for block in (1, 2) for n in (0, 1) for part in ("attn1.to_q", "attn1.to_out.0")
    ]  # fmt: skip
    rows = [{"layer": name, "angle_mean": float(number)} for number, name in enumerate(names)]
    (one,) = heat_maps(rows)
    assert one["depths"] == list(range(8)) and [module for module, _ in one["lines"]] == [
        "attn1.to_q",
        "attn1.to_out.0",
    ]
    cells = [cell for _, line in one["lines"] for cell in line]
    assert sorted(cell["value"] for cell in cells) == [float(number) for number in range(16)]
    assert cells[3]["label"].startswith(f"{names[6]}: ")
