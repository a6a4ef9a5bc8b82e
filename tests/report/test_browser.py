"""The pages of an image run, a comparison and two adapters in a real browser, fed with hostile words."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import DataError
from orthotune.report import write_report
from tests.report import chromium

BAD = '<img src=x onerror="window.hacked=1">\'"><script>window.hacked=1</script></style>{{ 7 * 7 }}'
STEPS, SEEDS = (0, 40, 80, 120), (0, 1, 2)


def png(path: Path, shade: int, side: int = 32) -> None:
    """A square in two tones."""
    row = b"\0" + bytes([shade, 90, 200] * (side // 2) + [240, shade, 60] * (side // 2))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(row * side)),
            (b"IEND", b""),
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def layers(
    name: str = "down_blocks.{}.attentions.0.transformer_blocks.0.attn1.to_q", shift: float = 0.0
) -> list[dict[str, Any]]:
    """What ``inspect`` says of the layers of an adapter."""
    return [
        {
            "layer": name.format(depth), "part": "", "side": "in", "shared": False, "block_size": 8, "blocks": 4,
            "parameters": 112, "angle_mean": 0.05 * (depth + 1) + shift, "angle_max": 0.2 + shift, "dead": 0.0,
            "distance": 0.3, "orthogonality_error": 10.0 ** -(6 + depth), "angle_counts": [16] + [0] * 23,
            "angle_histogram": [depth, 3, 9, 4], "cosine": depth / 4,
        }
        for depth in range(4)
    ]  # fmt: skip


def image_run(home: Path, word: str = "a red sks digit on grass") -> Path:
    """The folder of a finished run on images, as the recipes leave it."""
    home.mkdir(parents=True, exist_ok=True)
    samples = []
    for step in STEPS:
        for number, (prompt, seed) in enumerate((p, s) for p in (word, "a digit") for s in SEEDS):
            file = f"samples/step-{step:06d}/{number:02d}.png"
            png(home / file, (step + 40 * number) % 256)
            samples.append({"step": step, "prompt": prompt, "seed": seed, "file": file})
    (home / "samples.json").write_text(json.dumps(samples))
    lines = [{"step": step, "seconds": step / 4, "train_loss": 0.1 + 0.05 / (step + 1)} for step in range(1, 121)]
    lines += [{"step": step, "kept": 1 - step / 500, "subject_fidelity": step / 200} for step in STEPS]
    (home / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    png(home / "samples.png", 9)
    png(home / "curve.png", 9)
    record = {
        "recipe": "subject", "method": "oft", "settings": {"model": "image-world", "instance_prompt": word},
        "versions": {"torch": "2.13.0"}, "device": "cpu, 2 threads", "steps": 120, "train_seconds": 31.0,
        "trainable_parameters": 38400, "total_parameters": 5000000, "notes": [word],
        "scores_before": {"kept": 1.0, "subject_fidelity": 0.1, "drift": 0.0, "prompt_fidelity": 0.07},
        "scores_after": {"kept": 0.9, "subject_fidelity": 0.66, "drift": 0.08, "prompt_fidelity": 0.53},
        "weights": {"orthogonality_error": 2e-6, "energy_change": 1e-9, "angle_change": 1e-7},
        "artifacts": {"adapter": "adapter"},
    }  # fmt: skip
    (home / "run.json").write_text(json.dumps(record))
    return home


def facts(**more: Any) -> dict[str, Any]:
    """What the report is given of an adapter."""
    rows = layers() + layers("up_blocks.{}.attentions.0.transformer_blocks.0.attn1.to_q", 0.3)
    return {"layers": rows, "angle_mean": 0.1, "angle_max": 0.2, "angle_top": 0.2, "advice": [], **more}


def compared(name: str) -> dict[str, Any]:
    """What ``inspect --compare`` says."""
    return {"adapters": [name, f"{name} too"], "layers": layers(shift=0.1), "only_in_one": [name]}


def test_an_image_run_is_told_by_the_names_of_its_scores(tmp_path: Path) -> None:
    page = write_report(image_run(tmp_path), adapter=facts()).read_text()
    assert "nats per token" not in page and "perplexity" not in page
    for words in ("subject fidelity; 0.100 before training", "0.660", "prompt fidelity", "image.load_pipeline()"):
        assert words in page
    pairs = 2 * 2  # before and after stand beside each other for two seeds of each prompt
    assert page.count('<img class="tiny" src="data:image/png') == 2 * len(SEEDS) * len(STEPS) + 2 * pairs
    assert 'alt="curve"' not in page and 'alt="samples"' not in page  # drawn anew from their numbers
    assert page.count("0.2 rad</span>") == page.count('aria-label="angles of')


def test_texts_by_step_have_the_slider_too(tmp_path: Path) -> None:
    image_run(tmp_path)
    rows = [{"step": step, "prompt": "The", "text": f" text {step}"} for step in (1, 2)]
    (tmp_path / "samples.json").write_text(json.dumps([*rows, {"prompt": "a", "before": "b", "after": "c"}]))
    page = write_report(tmp_path).read_text()
    assert "text 1" in page and 'for="step1"' in page and "Before and after" in page


@pytest.mark.parametrize("file", ["../secret.png", "/etc/hostname", "note.png", "link.png", "none.png", "\0", 7, None])
def test_a_record_fetches_no_other_file(tmp_path: Path, file: Any) -> None:
    home = image_run(tmp_path / "run")
    png(tmp_path / "secret.png", 1)
    (home / "note.png").write_text("no picture")
    (home / "link.png").symlink_to(tmp_path / "secret.png")
    (home / "samples.json").write_text(json.dumps([{"step": 1, "prompt": "p", "seed": 0, "file": file}]))
    page = write_report(home).read_text()
    assert "Samples, step by step" not in page


def test_pictures_that_are_too_many_stay_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orthotune.report.samples.MOST_BYTES", 2000)
    page = write_report(image_run(tmp_path)).read_text()
    assert 0 < page.count('<img class="tiny"') < 2 * len(SEEDS) * len(STEPS)
    assert "more samples are in the run's folder only" in page.replace("&#39;", "'")


def test_a_long_run_has_a_slider_of_bounded_length(tmp_path: Path) -> None:
    image_run(tmp_path)
    rows = [{"step": step, "prompt": "", "text": "t"} for step in range(100)]
    (tmp_path / "samples.json").write_text(json.dumps(rows))
    page = write_report(tmp_path).read_text()
    assert (
        page.count('name="step"') == 12 and '"step0">0<' in page and '"step11" checked><label for="step11">99<' in page
    )


@pytest.mark.parametrize(
    "wrong", [{"gain": "much"}, {"settings": [1]}, {"weights": {"energy_change": []}}, {"notes": 3}]
)
def test_a_record_that_is_none_is_said_to_be_none(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"recipe": "sft", "method": "oft", **wrong}))
    try:
        write_report(tmp_path)
    except DataError as error:
        assert str(tmp_path) in str(error)
        assert not (tmp_path / "report.html").exists()


ROWS = [
    {
        "run": f"{method}-{rate}", "method": method, "learning_rate": rate, "trainable_parameters": 38400,
        "chosen": rate == 0.002, "validation_prompt_fidelity": fidelity, "validation_kept": 1 - fidelity / 3,
        "orthogonality_error": None, "train_seconds": 33.0,
    }
    for method, base in (("oft", 0.4), ("lora", 0.5), (BAD, 0.3))
    for rate, fidelity in ((0.001, base), (0.002, base + 0.3))
]  # fmt: skip
BASE = {
    "run": "none",
    "method": "none",
    "learning_rate": None,
    "validation_prompt_fidelity": 0.0,
    "validation_kept": 1.0,
}


def test_a_comparison_of_image_runs_has_its_own_axes(tmp_path: Path) -> None:
    record = {"recipe": "subject", "runs": [*ROWS, BASE], "settings": {}, "versions": {}}
    (tmp_path / "comparison.json").write_text(json.dumps(record))
    page = write_report(tmp_path).read_text()
    assert "Prompt fidelity (validation) upwards, kept (validation) to the right: the upper right is better" in page
    assert page.count('class="point') == 7
    assert (
        "<strong>0.800</strong>" in page
        and "best kept (validation)" in page
        and "best kept (validation): none" not in page
    )
    axes = {"learned": "validation_kept", "kept": "validation_prompt_fidelity", "learned_title": "memory"}
    (tmp_path / "comparison.json").write_text(json.dumps(record | {"axes": axes}))
    page = write_report(tmp_path).read_text()
    assert "Memory upwards, prompt fidelity (validation) to the right" in page


CLICKS = """
const shown = () => [...document.querySelectorAll('.frame')].map(f => getComputedStyle(f).display !== 'none');
said.first = shown();
document.querySelector('label[for=step0]').click(); said.clicked = shown();
said.drawn = [...document.querySelectorAll('.f0 img')].every(i => i.complete && i.naturalWidth === 32 && i.width > 100);
document.querySelectorAll('details').forEach(d => { d.open = true; });
said.wide = document.documentElement.scrollWidth - innerWidth;
said.hacked = window.hacked === undefined;
said.fetched = performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length;
said.prompt = document.querySelector('.prompt').textContent;
const paper = () => getComputedStyle(document.body).backgroundColor;
document.querySelector('label[for=dark]').click(); said.dark = paper();
"""


@chromium.needed
def test_the_slider_moves_and_no_word_does_anything(tmp_path: Path) -> None:
    advice = [{"warning": BAD, "layers": [BAD], "remedy": BAD}]
    adapter = facts(advice=advice, layers=[*layers(), *layers(f"{BAD}.{{}}.to_k")], adapter=BAD)
    page = write_report(image_run(tmp_path / "run", BAD), adapter=adapter, compared=compared(BAD))
    for width in (390, 1280):
        said = chromium.clicked(page, tmp_path, CLICKS, width)
        assert said["first"] == [False, False, False, True] and said["clicked"] == [True, False, False, False]
        assert said["drawn"] and said["hacked"] and said["fetched"] == 0
        assert said["prompt"] == BAD
        assert said["wide"] <= 0 and said["dark"] == "rgb(20, 23, 27)"


@chromium.needed
def test_screenshots_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    page = write_report(image_run(tmp_path / "run"), adapter=facts(), compared=compared("runs/other/adapter"))
    chromium.keep_screenshots(page, tmp_path, "image-run", 4200)
    (tmp_path / "compared").mkdir()
    rows = [*(row | {"method": row["method"].replace(BAD, "full")} for row in ROWS), BASE]
    (tmp_path / "compared/comparison.json").write_text(json.dumps({"recipe": "subject", "runs": rows}))
    chromium.keep_screenshots(write_report(tmp_path / "compared"), tmp_path, "comparison", 1400)
