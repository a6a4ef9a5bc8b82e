"""Fragments of the page: escaped, and of runs that are unfinished, damaged or of another version."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from orthotune.errors import OrthotuneError
from orthotune.studio import computing, pages
from orthotune.studio.facts import earlier_pace, read_facts, tail
from orthotune.studio.server import Guard, check_reach

HOSTILE = "</pre><script>alert(1)</script>"


def _run(folder: Path, **record: Any) -> Path:
    folder.mkdir(parents=True)
    settings = {"recipe": "sft", "method": "oft", "model": "text-world", "steps": 20, "learning_rate": 0.004}
    (folder / "settings.json").write_text(json.dumps(settings))
    lines = [
        {"step": step, "seconds": 2.0 * step, "new_nats": 3.0 - step / 10, "old_nats": 2.0 + step / 50}
        for step in (0, 5, 10)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1')
    if record:
        (folder / "run.json").write_text(json.dumps({"settings": settings, "recipe": "sft"} | record))
    return folder


def test_an_unfinished_run_has_curves_and_a_time(tmp_path: Path) -> None:
    facts = read_facts(_run(tmp_path / "a"))
    assert (facts.step, facts.steps, facts.seconds_left, facts.recipe, facts.fault) == (10, 20, 20.0, "sft", "")
    page = pages.live(facts, "runs/a", "running")
    assert page.count("<svg") >= 3 and "20 s left" in page and "step 10 of 20" in page.replace("\n", " ")
    row = facts.row("a")
    assert row["gain"] == pytest.approx(1.0) and row["forgetting"] == pytest.approx(0.2)


def test_the_warnings_of_the_last_look_are_shown_with_their_remedy(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    looks = [["at first (q). Wait."], ["NaN or infinite values (q). Go back to an earlier checkpoint."]]
    lines = [{"step": step, "seconds": 1.0, "diagnosis": {"advice": advice}} for step, advice in enumerate(looks)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = pages.live(read_facts(run), "a", "running")
    assert "Go back to an earlier checkpoint" in page and "at first" not in page
    for damaged in (5, {"advice": "text"}, {"advice": [5]}, {}):
        (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "diagnosis": damaged}) + "\n")
        assert "running" in pages.live(read_facts(run), "a", "running")


def test_samples_of_a_text_run_are_shown_by_step(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    rows = [{"step": step, "prompt": "Say", "text": f"words of {step}"} for step in (0, 5)]
    (run / "samples.json").write_text(json.dumps(rows))
    page = pages.live(read_facts(run), "a", "running")
    assert "words of 0" in page and "words of 5" in page and "Samples, step by step" in page


def test_two_runs_are_points_of_one_frontier(tmp_path: Path) -> None:
    rows = [
        read_facts(_run(tmp_path / name, gain=gain, forgetting=0.1, method="oft")).row(name)
        for name, gain in (("a", 0.5), ("b", 0.7))
    ]
    page = pages.compared(rows)
    assert page.count('class="point') == 2 and "<strong>+0.700</strong>" in page and "● b" in page
    images = [
        {"method": name, "learning_rate": 1e-4, "subject_fidelity": 0.1 * number, "kept": 0.9}
        for number, name in enumerate("ab")
    ]
    assert pages.compared(images).count('class="point') == 2
    assert "Choose two runs" in pages.compared([])


def test_texts_of_runs_are_escaped(tmp_path: Path) -> None:
    run = _run(tmp_path / "x", method=HOSTILE, notes=[HOSTILE], gain=0.1, forgetting=0.1, scores_after={HOSTILE: 0.5})
    (run / "samples.json").write_text(json.dumps([{"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}]))
    facts = read_facts(run)
    image = {"name": HOSTILE, "caption": HOSTILE, "own": True, "fault": HOSTILE}
    shown = [
        pages.live(facts, HOSTILE, HOSTILE), pages.compared([facts.row(HOSTILE)] * 2), pages.message(HOSTILE, "wrong"),
        pages.sides([(HOSTILE, HOSTILE)]), pages.lines([HOSTILE]), pages.link(HOSTILE, HOSTILE, True),
        pages.tools([{"tool": HOSTILE, "target": HOSTILE, "verdict": HOSTILE, "because": HOSTILE}]),
        pages.images({"rows": [image], "count": 1, "notes": [HOSTILE]}),
        pages.rows({"rows": [{HOSTILE: HOSTILE}], "count": 1}), pages.checked({HOSTILE: HOSTILE}),
        pages.layers({"format": "peft-lora", "layers": [{"layer": HOSTILE, "rank": 1, "parameters": 2, "change": 0}]}),
        pages.layers({"advice": [{"warning": HOSTILE, "remedy": HOSTILE, "layers": [HOSTILE]}]}),
    ]  # fmt: skip
    assert all("<script" not in page and "&lt;script" in page.replace("%3Cscript", "&lt;script") for page in shown)


def test_texts_that_are_no_utf8_can_be_sent(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    (run / "samples.json").write_text(json.dumps([{"prompt": "half \ud83d", "before": "\udce9", "after": "b"}]))
    for page in (pages.live(read_facts(run), "a", "running"), pages.message("caf\udce9.png")):
        assert page.encode() and "\\ud" in page


@pytest.mark.parametrize("content", ['{"steps": "many"', "[]", '"text"', "\x00"])
def test_a_damaged_run_is_a_message(tmp_path: Path, content: str) -> None:
    run = _run(tmp_path / "a")
    (run / "run.json").write_text(content)
    facts = read_facts(run)
    assert "run.json" in facts.fault and "run.json" in pages.live(facts, "a", "finished")


@pytest.mark.parametrize(
    "part", [{"settings": 5}, {"notes": 5}, {"notes": "text"}, {"weights": 5}, {"scores_after": 5}, {"steps": 10**400}]
)
def test_a_run_of_another_version_is_a_message(tmp_path: Path, part: dict[str, Any]) -> None:
    """One such run must not take the list of all runs away."""
    facts = read_facts(_run(tmp_path / "a", **part))
    assert f"run.json: {next(iter(part))}" in facts.fault and "run.json" in pages.live(facts, "a", "finished")
    assert facts.row("a")["gain"] is None and facts.seconds_left is None


def test_figures_that_are_none_are_a_message(tmp_path: Path) -> None:
    run = _run(tmp_path / "a")
    (run / "metrics.jsonl").write_text('{"step": 1' + 300 * "0" + "}\n")
    assert "metrics.jsonl: step" in read_facts(run).fault


@pytest.mark.parametrize("name", ["settings.json", "samples.json", "metrics.jsonl", "curve.png"])
def test_a_file_of_a_run_that_leads_elsewhere_is_not_shown(tmp_path: Path, name: str) -> None:
    run = _run(tmp_path / "a")
    (tmp_path / "secret").write_text('{"method": "secret"}\n')
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(tmp_path / "secret")
    facts = read_facts(run)
    assert name in facts.fault and "a link" in facts.fault and "secret" not in pages.live(facts, "a", "finished")


def test_the_time_of_a_run_is_that_of_one_like_it(tmp_path: Path) -> None:
    run = _run(tmp_path / "a", steps=20, train_seconds=50.0)
    like = json.loads((run / "settings.json").read_text())
    assert earlier_pace([tmp_path / "no", run], like, "sft") == (run, 2.5)
    assert earlier_pace([run], like | {"batch_size": 3}, "sft") is None
    assert earlier_pace([run], like, "dpo") is None


def test_the_end_of_a_log_is_plain_text(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"1%\r50%\r100%\r\n\x1b[2Jcleared\nhalf \xff")
    assert tail(tmp_path / "log").split("\n") == ["100%", "\\x1b[2Jcleared", "half \ufffd"]
    assert tail(tmp_path / "none") == ""


def test_data_that_leads_outside_the_folders_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "work" / "photos").mkdir(parents=True)
    (tmp_path / "work" / "texts").mkdir()
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "secret.png")
    Image.new("RGB", (6, 4), (1, 2, 3)).save(tmp_path / "work" / "photos" / "own.png")
    (tmp_path / "work" / "photos" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "work" / "photos" / "broken.png").write_bytes(b"no image")
    roots = [str(tmp_path / "work")]
    found = computing.images_of(str(tmp_path / "work" / "photos"), "a dog", roots)
    shown = {row["name"]: row.get("fault", "") for row in found["rows"]}
    assert shown["own"] == "" and "outside the folders" in shown["link"] and "broken" in shown["broken"]
    assert [row["caption"] for row in found["rows"]] == ["a dog"] * 3
    rows = [{"file_name": "../../secret.png", "text": "a"}, {"file_name": "own.png", "text": "b"}]
    table = tmp_path / "work" / "photos" / "metadata.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    listed = computing.images_of(str(tmp_path / "work" / "photos"), None, roots)["rows"]
    assert ["fault" in row for row in listed] == [True, False]
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    (tmp_path / "work" / "texts" / "a.jsonl").symlink_to(tmp_path / "secret.jsonl")
    with pytest.raises(OrthotuneError, match="outside the folders"):
        computing.rows_of(str(tmp_path / "work" / "texts"), roots)


def _status(guard: Guard, method: str | None = "GET", path: str = "/", **headers: str) -> int:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    scope |= {} if method is None else {"method": method}
    asyncio.run(guard(scope, None, send))  # type: ignore[arg-type]
    if sent[0]["status"] == 200:
        assert b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]
    return int(sent[0]["status"])


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_the_guard_answers_this_machine_this_page_and_the_password() -> None:
    guard = Guard(_answer, None, True)
    assert [_status(guard, host=host) for host in ("127.0.0.1:7860", "localhost", "[::1]:7860")] == [200] * 3
    assert [
        _status(guard, host=host) for host in ("evil.example", "localhost.evil.example:80", "", "127.0.0.1.nip.io")
    ] == [403] * 4
    assert _status(guard, "POST", host="localhost:1", origin="http://localhost:1") == 200
    assert _status(guard, "POST", host="localhost:1", origin="http://localhost:2") == 403
    assert _status(guard, "POST", host="localhost:1", origin="null") == 403
    assert _status(guard, None, host="localhost:1", origin="http://evil.example") == 403, "a connection both ways"
    assert [_status(guard, host="[::1"), _status(guard, "POST", host="localhost", origin="http://[")] == [403] * 2
    locked = Guard(_answer, "correct horse", False)
    assert _status(locked, host="box") == _status(locked, host="box", authorization="Basic c3R1ZGlvOm5v") == 401
    assert _status(locked, host="box", authorization="Basic c3R1ZGlvOmNvcnJlY3QgaG9yc2U=") == 200


@pytest.mark.parametrize(
    "route", ["file=https://example.org/x", "file=/tmp/x", "file/tmp/x", "proxy=https://x", "upload", "stream/a/b/c/d",
              "deep_link", "component_server/", "custom_component/a/b/c/d"]
)  # fmt: skip
def test_routes_of_gradio_that_the_page_does_not_use_are_closed(route: str) -> None:
    """The first one would have the server fetch whatever address a page of another site asks for."""
    guard = Guard(_answer, None, True)
    assert _status(guard, path=f"/gradio_api/{route}", host="localhost") == 403
    assert _status(guard, path="/gradio_api/queue/data", host="localhost") == 200


def test_other_machines_need_a_password() -> None:
    check_reach("127.0.0.1", None)
    check_reach("0.0.0.0", "correct horse")
    for host, password, message in (("0.0.0.0", None, "no password"), ("127.0.0.1", "short", "at least 12")):
        with pytest.raises(OrthotuneError, match=message):
            check_reach(host, password)
