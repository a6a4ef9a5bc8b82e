"""One run directory started twice at the same time: the second start is refused in words, a killed one is in no way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from orthotune.cli.failures import explain
from orthotune.errors import OrthotuneError, OutputError
from orthotune.recipes import sft, subject
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.runs.directory import RunDirectory

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the other process is a fork of this one")


@contextmanager
def _elsewhere(act: Callable[[], object]) -> Iterator[int]:
    """Another process that does something, and then only lives; its number."""
    done, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kept = act()  # noqa: F841
            os.write(tell, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(tell)
    try:
        assert os.read(done, 1) == b"!"
        yield child
    finally:
        os.close(done)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _opened(path: Path, settings: dict[str, Any] | None = None) -> RunDirectory:
    home = RunDirectory(path)
    home.open(settings or {}, "auto")
    return home


def _language(output: Path, files: Path) -> object:
    words = {"model": str(files / "model"), "data": str(files / "new.jsonl"), "resume": "auto"}
    return sft.run(SFTSettings(**words, steps=2, max_length=32, output=output), say=lambda _: None, bar=False)


def _image(output: Path, files: Path) -> object:
    words = {"instance_prompt": "a sks digit", "instance_images": str(files), "resume": "auto"}
    return subject.run(SubjectSettings(**words, output=output), say=lambda _: None, bar=False)


@pytest.mark.parametrize("start", [_language, _image])
def test_a_second_start_is_refused_with_the_process_that_holds_it(start: Any, files: Path, tmp_path: Path) -> None:
    with _elsewhere(lambda: _opened(tmp_path / "run")) as other:
        before = sorted((tmp_path / "run").iterdir())
        with pytest.raises(OrthotuneError, match=f"run, which is still going on: process {other} on .* since ") as end:
            start(tmp_path / "run", files)
        words, status = explain(end.value)
        assert status == 2 and "\n" not in words
        assert f"Wait for it or end it (kill {other}), then pass resume=auto; or pass output=PATH" in words
        assert sorted((tmp_path / "run").iterdir()) == before


def test_what_a_killed_process_held_is_free(files: Path, tmp_path: Path) -> None:
    with _elsewhere(lambda: _opened(tmp_path / "run")):
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    _language(tmp_path / "run", files)
    assert (tmp_path / "run" / "run.json").is_file() and not list((tmp_path / "run").glob(".*"))


def test_a_start_that_is_refused_for_another_reason_holds_nothing(tmp_path: Path) -> None:
    home = _opened(tmp_path / "run")
    home.claim({"steps": 4})
    home.drop_if_empty()
    for _ in range(2):
        kept = RunDirectory(tmp_path / "run")
        with pytest.raises(OutputError, match="an unfinished run"):
            kept.open({"steps": 4}, "never")
    with _elsewhere(lambda: _opened(tmp_path / "run", {"steps": 4})):
        pass


def test_a_finished_run_is_looked_at_by_as_many_as_like(tmp_path: Path) -> None:
    home = _opened(tmp_path / "run")
    home.claim({})
    home.record.write_text("{}")
    home.drop_if_empty()
    one, other = _opened(tmp_path / "run"), _opened(tmp_path / "run")
    assert one.finished and other.finished and not list((tmp_path / "run").glob(".*"))


def test_a_lock_file_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    """Who opened the file before its holder removed it holds a name that nobody looks at: it has to look again."""
    first = _opened(tmp_path / "run")
    waiting = (tmp_path / "run" / ".lock").open("a")
    first.drop_if_empty()
    second = _opened(tmp_path / "run")
    waiting.close()
    with pytest.raises(OutputError, match=f"process {os.getpid()}"):
        _opened(tmp_path / "run")
    second.drop_if_empty()
    assert not (tmp_path / "run").exists()
