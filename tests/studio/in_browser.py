"""The studio from the first click to the exported adapter, in a real headless Chromium: ``make test-studio``."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

from orthotune.files.locks import held_by
from orthotune.worlds.image_folders import write_subject
from tests.report import chromium
from tests.studio.server import PATIENCE, Browser, Studio, keep, started, tab, write
from tests.support.tiny_pipelines import save_tiny

pytestmark = [chromium.needed, pytest.mark.timeout(3600)]
#: Of the run that is watched, stopped and resumed.
STEPS = 40
#: A folder, a run and a prompt that would be markup, templates of scripts and templates of pages where not escaped.
HOSTILE = "<img src=x onerror=alert(1)>${alert(2)}{{7*7}}"


@pytest.fixture(scope="module")
def chromium_process() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = Browser(playwright)
        yield made
        made.browser.close()


@pytest.fixture
def browser(chromium_process: Browser) -> Iterator[Browser]:
    """Without the pages of other tests, each of which looks at its runs again and again."""
    yield chromium_process
    chromium_process.close_pages()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("work")
    yield folder
    for run in (folder / "runs").glob("*"):
        if (number := _holder(run)) is not None:  # a test that failed has left it, halted perhaps
            os.kill(number, signal.SIGTERM)
            os.kill(number, signal.SIGCONT)


@pytest.fixture(scope="module")
def studio(workspace: Path) -> Iterator[Studio]:
    with started(workspace) as made:
        yield made


def _until(holds: Any, seconds: float = PATIENCE / 1000) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.1)


def _pause(run: Path) -> int:
    """Halt the process that trains until it gets SIGCONT, so that the pages have all the time that they need."""
    number = _holder(run)
    assert number is not None
    os.kill(number, signal.SIGSTOP)
    return number


def _holder(run: Path) -> int | None:
    return (held_by(run / ".lock") or {}).get("process")


def _state(page: Any, words: str) -> None:
    page.locator("#jobs .state", has_text=words).first.wait_for()


def _step(run: Path) -> int:
    lines = (
        (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines() if (run / "metrics.jsonl").is_file() else []
    )
    return max((json.loads(line)["step"] for line in lines), default=0)


def test_the_path_of_a_language_model(studio: Studio, browser: Browser, workspace: Path) -> None:
    """Start, watch, kill the server, stop, resume, slider, tools, export, report, repeat."""
    run = workspace / "runs" / "first"
    page = browser.open(studio.address)
    # Short steps and measurements: the training halts where the page or the server must see its middle.
    given = {"steps": str(STEPS), "learning_rate": "-1", "batch_size": "1", "eval_every": "5", "output": "runs/first"}
    for key, value in given.items():
        write(page, key, value)
    page.get_by_text("Measuring and logs").click()
    write(page, "eval_tokens", "600")
    page.locator("#check .note.wrong").wait_for()
    assert "learning_rate" in page.locator("#check").inner_text()
    write(page, "learning_rate", "0.004")
    page.locator("#check .note.right").wait_for()
    page.locator("#needs").click()
    page.get_by_text("no finished run of this model").wait_for()
    assert "(estimate)" in page.locator("#needed").inner_text(), "the memory of a text run"
    keep(page, "start")
    page.locator("#start").click()
    page.get_by_text("runs/first is in the queue").wait_for()

    tab(page, "Run")
    _state(page, "running")
    _until(lambda: _step(run) >= 5)
    training = _pause(run)
    page.locator("#live svg.chart").first.wait_for()
    keep(page, "running")
    for name in ("sample-now", "save-now"):
        page.locator(f"#{name}").click()
        _until((run / name).exists)
    page.locator("#run-news .note.right").wait_for()

    studio.kill()  # in the middle of the run
    seen = _step(run)
    os.kill(training, signal.SIGCONT)
    _until(lambda: _step(run) > seen and not list(run.glob("*-now")))  # without a server
    asked = _step(run)
    _until(lambda: _step(run) > asked + 1)  # what was asked for is done: it belongs to the step
    assert _pause(run) == training
    sampled = {row["step"] for row in json.loads((run / "samples.json").read_text(encoding="utf-8"))}
    assert 0 in sampled and len(sampled) == 2 and (run / "checkpoints" / f"checkpoint-{max(sampled)}").is_dir()
    studio.start()
    page = browser.open(studio.address)
    tab(page, "Run")
    _state(page, "running")
    page.locator("#live .samples .prompt", has_text="The with statement").last.wait_for()  # the newest step is shown

    page.locator("#stop").click()
    page.get_by_text("saves a checkpoint").wait_for()
    _state(page, "stopping")
    os.kill(training, signal.SIGCONT)
    _state(page, "stopped")
    stopped = _step(run)
    assert 0 < stopped < STEPS and not (run / "run.json").exists()
    assert list((run / "checkpoints").glob("checkpoint-*"))
    page.locator("#resume").click()
    _state(page, "running")
    _state(page, "finished")
    assert json.loads((run / "run.json").read_text(encoding="utf-8"))["steps"] == STEPS
    page.locator("#live .legend").first.wait_for()
    keep(page, "finished")

    tab(page, "After")
    page.locator("#prompt textarea").fill("The with statement is used to")
    page.locator("#strength input[type=number]").fill("0")
    page.locator("#show").click()
    page.locator("#sides pre").nth(1).wait_for()
    off, on = page.locator("#sides pre").all_inner_texts()
    assert off == on and off.strip(), "at strength 0 the run is its base"
    page.locator("#strength input[type=number]").fill("1")
    page.locator("#show").click()
    page.get_by_text("strength 1", exact=True).wait_for()
    _choose(page, "by", "each projection")
    names = page.locator("#parts input[type=number]")
    names.nth(6).wait_for()
    for number in range(names.count()):  # each of them off is the base
        names.nth(number).fill("0")
        names.nth(number).press("Tab")
    _until(lambda: _shows_the_base(page))
    names.nth(0).fill("1")
    names.nth(0).press("Tab")
    _until(lambda: "q_proj" not in _shown(page))
    keep(page, "after")
    page.get_by_text("Write a new adapter at").click()
    page.locator("#weaker-name textarea, #weaker-name input").first.fill("weaker")
    page.locator("#rewind").click()
    page.locator("#rewind-news .note.right").wait_for()
    assert (workspace / "adapters" / "weaker" / "adapter_config.json").is_file()
    page.get_by_text("Export with the weights").click()
    _export(page, workspace / "merged-parts")
    _choose(page, "by", "all layers together")
    _export(page, workspace / "merged")
    changed = _changed(workspace / "merged-parts", workspace / "merged")
    assert changed and not any("q_proj" in name for name in changed), "q_proj is at 1 in both, the others are not"
    page.get_by_text("Dialogue of several").click()
    for number, text in enumerate(("A list is", "A tuple is")):
        page.locator("#message textarea, #message input").first.fill(text)
        page.locator("#send").click()
        page.locator("#dialogue .pair").nth(number).wait_for()
    assert page.locator("#dialogue").inner_text().count("adapter off") == 2
    page.locator("#send").click()  # an empty message
    page.locator("#dialogue .note.wrong").wait_for()
    keep(page, "dialogue")
    page.locator("#begin-again").click()
    page.locator("#dialogue .pair").first.wait_for(state="detached")
    page.get_by_text("What each layer does").click()
    page.locator("#look-layers").click()
    page.locator("#layers").get_by_text("Depth and module").wait_for()
    keep(page, "layers")
    page.get_by_text("Combine with another adapter").click()
    _choose(page, "other", "adapters/weaker")
    page.locator("#combined-name textarea, #combined-name input").first.fill("both")
    page.locator("#combine").click()
    page.locator("#combine-news .note.right").wait_for()
    assert (workspace / "adapters" / "both" / "adapter_config.json").is_file()
    page.get_by_text("Tools that can load it").click()
    page.locator("#tools").click()
    page.locator("#tools-list .state.lossless").first.wait_for()
    page.locator("#convert-out textarea, #convert-out input").first.fill("converted/first")
    page.locator("#convert").click()
    page.locator("#convert-news .note.right").wait_for()
    assert (workspace / "converted" / "first" / "adapter_config.json").is_file()
    page.locator("#convert-out textarea, #convert-out input").first.fill("../outside")
    page.locator("#convert").click()
    page.locator("#convert-news .note.wrong").wait_for()
    assert "outside the folders" in page.locator("#convert-news").inner_text()
    keep(page, "tools")
    with page.context.expect_page() as opened:
        page.locator("#report-link a").click()
    opened.value.wait_for_load_state()
    assert "OFT" in opened.value.locator("h1").inner_text()

    tab(page, "Compare")
    page.locator("#changed-value textarea, #changed-value input").first.fill("0.001")
    page.locator("#repeat").click()
    page.wait_for_function("() => document.querySelector('#recipe-text').innerText.includes('learning_rate: 0.001')")
    assert "output" not in page.locator("#recipe-text").inner_text()
    page.locator("#check .note.right").wait_for()
    # Most steps are long done: the run that is repeated says how long this one takes.
    page.locator("#needs").click()
    page.get_by_text("as runs/first needed").wait_for()
    assert not browser.faults and all(url.startswith((studio.address, "data:", "blob:")) for url in browser.fetched)


def test_two_tabs_and_a_queue(studio: Studio, browser: Browser, workspace: Path) -> None:
    """What one tab starts another one shows; a second run waits; both are compared."""
    one, other = browser.open(studio.address), browser.open(studio.address, 390)
    for page, name in ((one, "second"), (other, "third")):
        page.get_by_text("Measuring and logs").click()
        for key, value in {"steps": "4", "batch_size": "2", "eval_tokens": "600", "output": f"runs/{name}"}.items():
            write(page, key, value)
        page.locator("#check .note.right").wait_for()
        page.locator("#start").click()
        page.get_by_text(f"runs/{name} is in the queue").wait_for()
        if name == "second":  # it goes on when the third one was seen to wait
            _until(lambda: _holder(workspace / "runs" / "second") is not None)
            training = _pause(workspace / "runs" / "second")
    other.locator("#start").click()  # a second click
    other.get_by_text("waits in the queue").or_(other.get_by_text("Found: a run")).first.wait_for()
    tab(one, "Run")
    row = one.locator("#jobs tr", has_text="runs/third")
    row.locator(".state", has_text="waiting").wait_for()
    _choose(one, "run", "runs/second")
    one.locator("#finish").focus()
    one.keyboard.press("Enter")  # a keyboard is enough
    _until((workspace / "runs" / "second" / "finish-now").exists)
    os.kill(training, signal.SIGCONT)
    row.locator(".state", has_text="finished").wait_for()
    assert one.locator("#jobs tr", has_text="runs/second").locator(".state").inner_text() == "finished"
    ended = json.loads((workspace / "runs" / "second" / "run.json").read_text(encoding="utf-8"))
    assert ended["stopped_by"]["rule"] == "finish-now" and ended["steps"] < 4
    tab(one, "Compare")
    one.locator("#compared .point").nth(1).wait_for()
    keep(one, "compare")
    assert not browser.faults


def test_the_path_of_an_image_model(browser: Browser, workspace: Path) -> None:
    """Samples live, the slider, layers, tools and conversion; the model is tiny, and its images are noise."""
    save_tiny("sd15", workspace / "tiny")
    write_subject(workspace / "nines")
    text = """
model: tiny
instance_images: nines
instance_prompt: a sks digit
batch_size: 2
steps: 3
sample_steps: 1
sample_every: 1
sample_seeds: [0]
learning_rate: 0.02
schedule: constant
warmup: 0
block_size: 4
output: runs/image
"""
    with started(workspace) as studio:
        page = browser.open(studio.address)
        _choose(page, "recipe", "subject:")
        page.locator("#set-instance_images").wait_for(state="attached")
        page.locator("#recipe-text .cm-content").click()
        page.keyboard.press("ControlOrMeta+a")
        page.keyboard.insert_text(text)
        page.locator("#recipe-text .cm-content").blur()
        page.locator("#check .note.right").wait_for()
        page.locator("#needs").click()
        page.locator("#needed").get_by_text("activations").wait_for()
        page.locator("#start").click()
        page.get_by_text("runs/image is in the queue").wait_for()
        tab(page, "Run")
        page.locator("#jobs tr", has_text="runs/image").locator(".state", has_text="finished").wait_for()
        _choose(page, "run", "runs/image")
        page.locator("#live .samples img").last.wait_for()  # the newest step is shown
        keep(page, "images")
        tab(page, "After")
        _choose(page, "source", "runs/image")
        page.locator("#report-link a").wait_for()
        page.locator("#prompt textarea").fill("a sks digit")
        shown = []
        for strength in ("0", "1"):
            page.locator("#strength input[type=number]").fill(strength)
            page.locator("#show").click()
            page.locator("#sides").get_by_text(f"strength {strength}", exact=True).wait_for()
            page.locator("#sides img").nth(7).wait_for()
            shown.append([one.get_attribute("src") for one in page.locator("#sides img").all()])
        (off, on) = shown
        assert off[:4] == off[4:] == on[:4], "at strength 0 the images are those of the base"
        assert on[4:] != on[:4]
        _choose(page, "by", "attention and MLP")
        page.locator("#part-0 input[type=number]").fill("0.5")
        page.locator("#part-0 input[type=number]").press("Tab")
        page.locator("#show").click()
        page.locator("#sides").get_by_text("of which").wait_for()
        keep(page, "image-after")
        half = [one.get_attribute("src") for one in page.locator("#sides img").all()]
        assert half[:4] == on[:4] and half[4:] != on[4:]
        page.get_by_text("Write a new adapter at").click()
        page.locator("#weaker-name textarea, #weaker-name input").first.fill("weaker-image")
        page.locator("#rewind").click()
        page.locator("#rewind-news .note.right").wait_for()
        assert list((workspace / "adapters" / "weaker-image").rglob("*.safetensors"))
        page.get_by_text("What each layer does").click()
        page.locator("#look-layers").click()
        page.locator("#layers").get_by_text("Depth and module").wait_for()
        page.get_by_text("Tools that can load it").click()
        page.locator("#tools").click()
        page.locator("#tools-list .state").first.wait_for()
        page.locator("#convert-out textarea, #convert-out input").first.fill("converted/image.safetensors")
        page.locator("#convert").click()
        page.locator("#convert-news .note").wait_for()
        assert page.locator("#convert-news .note.right").count(), page.locator("#convert-news").inner_text()
        assert not browser.faults


def _choose(page: Any, key: str, words: str) -> None:
    """Choose an entry of a list."""
    page.locator(f"#{key} input").click()
    page.get_by_role("option", name=words).first.click()


def _shows_the_base(page: Any) -> bool:
    _shown(page)
    off, on = page.locator("#sides pre").all_inner_texts()
    return bool(off == on)


def _shown(page: Any) -> str:
    """The strengths of the answers that a click has brought."""
    page.locator("#show").click()
    page.locator("#sides").get_by_text("of which").wait_for()
    page.locator("#sides .progress-text").wait_for(state="detached")
    return str(page.locator("#sides").get_by_text("of which").inner_text())


def _export(page: Any, out: Path) -> None:
    page.locator("#export-out textarea, #export-out input").first.fill(out.name)
    page.locator("#export").click()
    _until((out / "config.json").is_file)
    page.locator("#export-news .note.right").wait_for()


def _changed(one: Path, other: Path) -> list[str]:
    """The weights that differ between two models by more than the rounding of float16."""
    from orthotune.files.safetensors_file import read_tensors

    first, second = (read_tensors(folder / "model.safetensors") for folder in (one, other))
    return [name for name in first if not first[name].allclose(second[name], atol=1e-3)]


def test_hostile_names_are_text(browser: Browser, tmp_path: Path) -> None:
    """Names of folders and files, captions and prompts are shown as they are."""
    run = tmp_path / HOSTILE.replace("/", "")
    (run / "checkpoints").mkdir(parents=True)
    settings = {"recipe": "sft", "method": HOSTILE, "model": HOSTILE, "steps": 9}
    (run / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    lines = [
        {"step": step, "seconds": step, "new_nats": 3.0 - step, "old_nats": 2.0, "clipping": HOSTILE} for step in (0, 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run / "samples.json").write_text(
        json.dumps([{"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}]), encoding="utf-8"
    )
    (run / "run.json").write_text(
        json.dumps(
            {
                "recipe": "sft",
                "method": HOSTILE,
                "settings": settings,
                "steps": 1,
                "gain": 0.5,
                "forgetting": 0.1,
                "notes": [HOSTILE],
            }
        ),
        encoding="utf-8",
    )
    (run / "adapter").mkdir()
    photos = tmp_path / "photos"
    photos.mkdir()
    _png(photos / f"{HOSTILE}.png")
    (photos / f"{HOSTILE}.txt").write_text(HOSTILE, encoding="utf-8")
    (photos / "broken.png").write_bytes(b"no image")
    with started(tmp_path) as studio:
        page = browser.open(studio.address)
        page.locator("#recipe input").click()
        page.get_by_role("option", name="t2i:").click()
        page.locator("#set-caption").wait_for(state="attached")
        write(page, "data", "photos")
        page.get_by_text("Data of this run").click()
        page.locator("#look").click()
        page.locator("#data figure").nth(1).wait_for()
        assert HOSTILE in page.locator("#data").inner_text() and "broken" in page.locator("#data .note").inner_text()
        page.locator("#caption textarea").fill("a robin")
        page.locator("#keep-caption").click()
        page.locator("#caption-news .note.right").wait_for()
        keep(page, "data")
        assert (photos / f"{HOSTILE}.txt").read_text(encoding="utf-8") == "a robin\n"
        write(page, "data", "/etc")
        page.locator("#check .note.wrong").wait_for()
        assert "outside the folders" in page.locator("#check").inner_text()
        for name, place in (("Run", "#live"), ("After", "#report-link"), ("Compare", "#compared")):
            tab(page, name)
            page.locator(place).get_by_text("<img src=x", exact=False).first.wait_for()
            assert "{{7*7}}" in page.locator(place).inner_text()
        assert page.locator("img[src=x]").count() == 0 and not browser.faults


def test_only_this_machine_and_only_the_page(studio: Studio, workspace: Path, tmp_path: Path) -> None:
    """Other names of the machine, posts of other pages and files outside the folders are refused."""

    def status(method: str, path: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", int(studio.port), timeout=60)
        connection.request(method, path, headers=headers)
        return connection.getresponse().status

    secret = tmp_path / "report.html"
    secret.write_text("secret", encoding="utf-8")
    assert status("GET", "/") == 200
    assert status("GET", "/", Host="evil.example") == 403
    assert status("POST", "/gradio_api/queue/join", Origin="http://evil.example") == 403
    assert status("GET", f"/report?run={tmp_path}") == 403
    assert status("GET", "/report?run=../../etc") == 403
    assert status("GET", f"/gradio_api/file={secret}") in (403, 404)
    assert status("GET", "/gradio_api/file=/etc/passwd") in (403, 404)
    (workspace / "own.txt").write_text("own", encoding="utf-8")
    for path in ("file=own.txt", "file=https://example.org/", "upload_progress", "deep_link"):
        assert status("GET", f"/gradio_api/{path}") == 403
    assert status("POST", "/gradio_api/upload", Origin=studio.address) == 403
    for path in ("static/../../server.py", "assets/..%2f..%2f..%2fserver.py", "svelte/..%2f..%2fserver.py"):
        assert status("GET", f"/{path}") in (403, 404)


def test_a_password(tmp_path: Path) -> None:
    """With a password nothing is answered without it."""
    with started(tmp_path, ORTHOTUNE_STUDIO_PASSWORD="correct horse battery") as studio:
        for word, wanted in (("", 401), ("studio:wrong", 401), ("studio:correct horse battery", 200)):
            connection = http.client.HTTPConnection("127.0.0.1", int(studio.port), timeout=60)
            connection.request(
                "GET", "/", headers={"Authorization": "Basic " + base64.b64encode(word.encode()).decode()}
            )
            assert connection.getresponse().status == wanted


def _png(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (40, 24), (20, 120, 200)).save(path)
