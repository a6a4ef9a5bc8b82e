from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import OutputError
from orthotune.runs.metrics_log import MetricsLog, read_lines


def test_resuming_drops_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(5):
        log.append({"step": step, "seconds": float(step)})
    with path.open("a") as file:
        file.write('{"step": 5, "sec')
    assert [line["step"] for line in read_lines(path)] == [0, 1, 2, 3, 4]
    resumed = MetricsLog(path, from_step=2)
    resumed.append({"step": 3, "seconds": 9.0})
    assert [line["step"] for line in read_lines(path)] == [0, 1, 2, 3]
    assert resumed.last("seconds") == 9.0
    assert MetricsLog(path).lines == [] and read_lines(path) == []


def test_outcome(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"step": 0, "new_nats": 3.0})
    log.append({"step": 1, "train_loss": 2.0})
    log.append({"step": 2, "new_nats": 2.5})
    outcome = log.outcome()
    assert (outcome["new_before"], outcome["new_after"], outcome["gain"]) == (3.0, 2.5, 0.5)
    assert outcome["forgetting"] is None and outcome["old_before"] is None
    log.append({"step": 3, "old_nats": 1.0})
    log.append({"step": 4, "old_nats": 1.25})
    assert log.outcome()["forgetting"] == pytest.approx(0.25)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("word", ["stop", "go-on"])
def test_a_full_disk_is_told_once_and_the_lines_are_written_when_there_is_room(tmp_path: Path, word: Any) -> None:
    path, said = tmp_path / "metrics.jsonl", list[str]()
    log = MetricsLog(path, on_failed_save=word, say=said.append)
    log.append({"step": 0})
    path.rename(tmp_path / "before")
    path.symlink_to("/dev/full")
    if word == "stop":
        with pytest.raises(OutputError, match="writing .*metrics.jsonl. Found: No space left on device. Free some"):
            log.append({"step": 1})
        return
    for step in (1, 2):
        log.append({"step": step})
    assert len(said) == 1 and "No space left on device" in said[0] and "kept until there is room" in said[0]
    (tmp_path / "before").rename(path)
    log.append({"step": 3})
    assert [line["step"] for line in read_lines(path)] == [0, 1, 2, 3] and len(said) == 1
