"""Settings and captions through the calls of the page, with torch and Gradio: ``make test-studio``."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orthotune.studio import computing
from orthotune.studio.folders import Folders


def test_settings_are_checked_as_on_the_command_line() -> None:
    def answer(name: str, **arguments: Any) -> dict[str, Any]:
        results = io.BytesIO()
        computing.serve(io.BytesIO((json.dumps({"call": name, "arguments": arguments}) + "\n").encode()), results)
        found: dict[str, Any] = json.loads(results.getvalue())
        return found

    good = answer("check", recipe="sft", text="method: lora\nsteps: 50\n")
    assert good["result"]["steps"] == 50 and good["result"]["model"] == "text-world"
    bad = answer("check", recipe="sft", text="method: lora\neps: 1\n")["error"]
    assert bad.startswith("recipe, line 2: eps has no meaning for method=lora")
    assert "Did you mean 'learning_rate'" in answer("check", recipe="sft", text="lr: 1\n")["error"]
    assert "KeyError" in answer("no_such_call")["error"]


@pytest.mark.parametrize("table", ["metadata.jsonl", "other.jsonl"])
def test_a_caption_of_a_table_is_not_written_where_nobody_reads_it(tmp_path: Path, table: str) -> None:
    gradio = pytest.importorskip("gradio", reason="make test-studio has it")
    from orthotune.studio.start_tab import StartTab
    from orthotune.studio.workshop import Workshop

    (tmp_path / "photos" / "deep").mkdir(parents=True)
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "photos" / "deep" / "own.png")
    (tmp_path / "photos" / table).write_text('{"file_name": "deep/own.png", "text": "a"}\n', encoding="utf-8")
    workshop = Workshop(Folders([tmp_path]))
    with gradio.Blocks():
        tab = StartTab(workshop)
    source = "photos" if table == "metadata.jsonl" else f"photos/{table}"
    try:
        news = tab._keep(f"data: {source}\n", "deep/own", "b")
    finally:
        workshop.checks.close()
    assert f"a row of {table}" in news and not (tmp_path / "photos" / "deep" / "own.txt").exists()


def test_a_caption_is_written_beside_its_image_and_nowhere_else(tmp_path: Path) -> None:
    """Links that lead out of the folders, and names that are no image, write nothing."""
    gradio = pytest.importorskip("gradio", reason="make test-studio has it")
    from orthotune.studio.start_tab import StartTab
    from orthotune.studio.workshop import Workshop

    photos, outside = tmp_path / "work" / "photos", tmp_path / "outside"
    photos.mkdir(parents=True)
    outside.mkdir()
    for file in (photos / "own.png", photos / "led.png", outside / "away.png"):
        Image.new("RGB", (6, 4), (1, 2, 3)).save(file)
    (outside / "secret.txt").write_text("secret", encoding="utf-8")
    (photos / "led.txt").symlink_to(outside / "secret.txt")
    (photos / "away.png").symlink_to(outside / "away.png")
    (photos / "own.json").write_text('{"caption": "of another trainer"}', encoding="utf-8")
    workshop = Workshop(Folders([tmp_path / "work"]))
    with gradio.Blocks():
        tab = StartTab(workshop)
    try:
        assert tab._caption("data: photos\n", "own") == "of another trainer"
        assert "Written: photos/own.txt" in tab._keep("data: photos\n", "own", " a robin,\n<b>red</b> ")
        assert tab._caption("data: photos\n", "own") == "a robin, <b>red</b>"
        for name in ("led", "away"):
            assert "outside the folders" in tab._keep("data: photos\n", name, "b"), name
        for name in ("../own", "own.png", ""):
            assert 'class="note wrong"' in tab._keep("data: photos\n", name, "b"), name
        assert "outside the folders" in tab._keep(f"data: {outside}\n", "away", "b")
        assert f"Nothing is at none.jsonl in {tmp_path / 'work'}" in tab._look("sft", "data: none.jsonl\n")[0]
        assert "built-in model; no file" in tab._look("sft", "")[0]
        (tmp_path / "work" / "empty").mkdir()
        for recipe in ("sft", "t2i"):
            assert "no data file" in (found := tab._look(recipe, "data: empty\n")[0]) or "Found: none" in found
    finally:
        workshop.checks.close()
    assert (photos / "own.txt").read_text(encoding="utf-8") == "a robin,\n<b>red</b>\n"
    assert (outside / "secret.txt").read_text(encoding="utf-8") == "secret"
    assert sorted(path.name for path in outside.iterdir()) == ["away.png", "secret.txt"]
