"""The image loop on a disk that is full: the run ends in words or goes on, as it was told to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from orthotune.errors import OutputError
from orthotune.image.loop.loop import Every
from orthotune.runs.checkpoint_folder import by_step
from orthotune.runs.checkpoint_manifest import check
from orthotune.runs.directory import RunDirectory
from orthotune.runs.metrics_log import MetricsLog
from tests.image.toy_training import options, run, tiny_trainee
from tests.support.small_disk import fill, small_disk

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's tmpfs")


def full_between(disk: Path, first: int, last: int) -> Every:
    """Another process takes all the space before step ``first`` and gives it back after ``last``."""

    def act(step: int, _: object, log: MetricsLog) -> None:
        log.append({"step": step, "note": "x" * 4096})  # a page, so that no line fits into what the file has already
        if step + 1 == first:
            fill(disk, left=0)
        if step == last:
            (disk / "filler").unlink()

    return Every(act, 1)


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 4 << 20):

        def almost(step: int, *_: object) -> None:
            if step == 2:
                fill(disk)  # room for lines of the log, and for no checkpoint

        with pytest.raises(OutputError, match="checkpoint of step 4 could not be written.*checkpoint-2 is kept"):
            run(disk / "run", options(), tiny_trainee(), on_step=[Every(almost, 1)])
        kept = RunDirectory(disk / "run").newest_checkpoint()
        assert kept is not None and check(kept) == 2 and not list(kept.parent.glob(".*"))
        (disk / "filler").unlink()
        resumed = run(disk / "run", options(), tiny_trainee(), kept).lines
        whole = run(tmp_path / "whole", options(), tiny_trainee()).lines
        assert [line | {"seconds": 0} for line in resumed] == [line | {"seconds": 0} for line in whole]


def test_a_run_may_go_on_without_a_checkpoint_and_its_log_catches_up(tmp_path: Path) -> None:
    disk, told = tmp_path / "disk", list[str]()
    with small_disk(disk, 4 << 20):
        said = options(steps=8, on_failed_save="go-on")
        log = run(disk / "run", said, tiny_trainee(), say=told.append, on_step=[full_between(disk, 5, 6)])
        assert [path.name for path in by_step(disk / "run" / "checkpoints")] == [f"checkpoint-{n}" for n in (8, 4, 2)]
        lines = [json.loads(line) for line in (disk / "run" / "metrics.jsonl").read_text().splitlines()]
        assert lines == log.lines and [line["step"] for line in lines if "train_loss" in line] == list(range(1, 9))
    assert len(told) == 2
    assert "metrics.jsonl. Found: No space left on device" in told[0] and "kept until there is room" in told[0]
    assert "checkpoint of step 6 could not be written" in told[1] and "Training goes on" in told[1]


def test_a_log_that_cannot_be_written_stops_a_run_that_is_not_told_otherwise(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 4 << 20):
        with pytest.raises(OutputError, match=r"writing .*metrics.jsonl. Found: No space left on device.*resume=auto"):
            run(disk / "run", options(), tiny_trainee(), on_step=[full_between(disk, 5, 6)])
        lines = (disk / "run" / "metrics.jsonl").read_text()
        assert lines.endswith("}\n") and len(lines.splitlines()) == 10  # those of five steps, and a page each
