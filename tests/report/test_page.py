"""The page holds what the records say, escaped, and fetches nothing."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import DataError, OutputError
from orthotune.report import write_report

# the smallest valid PNG: one transparent pixel
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
RUN: dict[str, Any] = {
    "recipe": "sft",
    "method": "oft",
    "settings": {"model": "text-world", "steps": 200, "target_modules": ["q_proj", "v_proj"], "lora_rank": None},
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
    "device": "cpu, 2 threads",
    "trainable_parameters": 103168,
    "total_parameters": 2267584,
    "steps": 200,
    "new_before": 3.5,
    "new_after": 3.0876,
    "gain": 0.4124,
    "old_before": 2.0,
    "old_after": 2.0312,
    "forgetting": 0.0312,
    "weights": {"orthogonality_error": 2.9e-6, "energy_change": 2.0e-10, "angle_change": 4e-7},
    "seconds": 90.0,
    "train_seconds": 75.2,
    "notes": ["oft: all went well"],
    "artifacts": {"adapter": "adapter", "curve": "curve.png"},
}
ROW = {"run": "r", "method": "oft", "learning_rate": 0.004, "trainable_parameters": 103168, "train_seconds": 60.0}
LAYER = {
    "layer": "model.layers.0.q_proj",
    "part": "",
    "side": "in",
    "block_size": 32,
    "blocks": 6,
    "shared": False,
    "parameters": 2976,
    "angle_max": 0.4579,
    "angle_mean": 0.186,
    "orthogonality_error": 2.4e-6,
}


class _Reader(HTMLParser):
    """Collects tags, and complains about ones that do not close in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _page(folder: Path, **options: Any) -> str:
    return write_report(folder, **options).read_text(encoding="utf-8")


def _write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    _write(tmp_path, "run.json", RUN)
    (tmp_path / "curve.png").write_bytes(PNG)
    return tmp_path


def test_results_settings_and_versions_are_on_the_page(run: Path) -> None:
    page = _page(run)
    for words in ("+0.412", "+0.031", "2.9e-06", "103,168 of 2,267,584", "1 min 15 s", "q_proj, v_proj", "torch 2.13"):
        assert words in page
    assert "oft: all went well" in page
    assert (run / "report.html").is_file()
    assert not list(run.glob("*.partial"))


def test_answers_stand_beside_the_losses(run: Path) -> None:
    scores = {
        "scores_before": {"answers": 0.575, "answers_nats": 2.995},
        "scores_after": {"answers": 0.55, "answers_nats": 2.5},
    }
    _write(run, "run.json", RUN | scores)
    lines = [
        {"step": 0, "new_nats": 3.5, "answers": 0.575, "answers_nats": 2.995},
        {"step": 9, "answers": 0.55, "answers_nats": 2.5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page = _page(run)
    assert "+0.412" in page and "perplexity before" in page and "of images" not in page
    assert "answers; 0.575 before training" in page
    assert '<td>answers</td><td class="n">0.575</td><td class="n bad">0.550</td>' in page
    assert '<td>answers nats</td><td class="n">2.995</td><td class="n good">2.500</td>' in page
    assert "step 9: answers 0.55" in page and "step 9: answers nats" not in page


def test_page_is_whole_and_fetches_nothing(run: Path) -> None:
    _write(run, "comparison.json", {"recipe": "sft", "runs": [{**ROW, "gain": 0.4, "forgetting": 0.1}]})
    reader = _Reader()
    reader.feed(_page(run, adapter={"layers": [LAYER], "angle_mean": 0.1, "angle_max": 0.4579}))
    assert reader.open == []
    assert not [tag for tag, _ in reader.seen if tag in ("script", "link", "iframe")]
    sources = [attrs["src"] or "" for _, attrs in reader.seen if "src" in attrs]
    assert sources == ["data:image/png;base64," + base64.b64encode(PNG).decode()]
    assert not [attrs for _, attrs in reader.seen if "href" in attrs]
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in reader.seen


def test_everything_from_the_records_is_escaped(run: Path) -> None:
    bad = "<script>alert('x')</script>"
    _write(run, "run.json", RUN | {"notes": [bad], "device": bad, "settings": {"model": bad, bad: bad}, "method": bad})
    _write(run, "samples.json", [{"prompt": bad, "before": bad, "after": bad}])
    page = _page(run, adapter={"layers": [{**LAYER, "layer": bad}], "angle_mean": 0.1, "angle_max": 0.4})
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 8


def test_layers_of_the_adapter(run: Path) -> None:
    facts = {"layers": [LAYER], "angle_mean": 0.186, "angle_max": 0.4579, "beyond_stock_peft": ["side"]}
    page = _page(run, adapter=facts)
    assert "model.layers.0.q_proj" in page
    assert "0.4579" in page
    assert "Needs orthotune to load, because of side." in page


def test_how_to_load_names_the_model_and_what_was_kept(run: Path) -> None:
    page = _page(run)
    assert "from_pretrained(text.MODEL)" in page
    assert "/adapter&#39;)" in page
    _write(run, "run.json", RUN | {"method": "full", "artifacts": {"model": "model"}, "settings": {"model": "gpt2"}})
    page = _page(run)
    assert "PeftModel" not in page
    assert re.search(r"from_pretrained\(&#39;[^)]*/model&#39;\)", page)


def test_samples_are_shown_side_by_side(run: Path) -> None:
    _write(run, "samples.json", [{"prompt": "The with", "before": "  ", "after": " statement"}])
    page = _page(run)
    assert "The with" in page
    assert "(nothing)" in page


def test_what_was_not_measured_is_a_dash(run: Path) -> None:
    record = {key: value for key, value in RUN.items() if not key.startswith("old_") and key != "forgetting"}
    _write(run, "run.json", record | {"weights": {}})
    page = _page(run)
    assert "None" not in page
    assert "‖RRᵀ−I‖" not in page


def test_comparison_alone(tmp_path: Path) -> None:
    rows = [
        {**ROW, "gain": 0.41, "forgetting": 0.03, "orthogonality_error": 3e-6},
        {**ROW, "method": "full", "learning_rate": 0.0005, "gain": 0.5, "forgetting": 0.2},
        {**ROW, "method": "lora", "gain": None, "forgetting": None},
    ]
    _write(tmp_path, "comparison.json", {"recipe": "sft", "runs": rows, "settings": {"seeds": [0]}, "versions": {}})
    (tmp_path / "frontier.png").write_bytes(PNG)
    page = _page(tmp_path)
    assert "<strong>+0.500</strong>" in page
    assert "best gain: full at 0.0005, forgetting +0.200" in page
    assert "least forgetting: oft at 0.004, gain +0.410" in page
    assert 'alt="frontier"' in page
    assert "Load it" not in page


def test_folder_without_records_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"not a finished run.*neither run\.json nor comparison\.json"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        write_report(tmp_path / "none")


@pytest.mark.parametrize("content", ["{", "[]"])
def test_broken_record_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(DataError, match=r"run\.json"):
        write_report(tmp_path)


def test_page_that_cannot_be_written(run: Path) -> None:
    (run / "report.html").mkdir()
    with pytest.raises(OutputError, match=r"writing .*report\.html"):
        write_report(run)
    assert not list(run.glob(".*partial"))
