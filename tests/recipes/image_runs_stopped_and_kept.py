"""An image run that is stopped, asked, made longer, continued; the best parameters by a held-out loss.

A dozen runs of tiny models, `make test-image-runs`; `make test` does not collect this file.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import orthotune
from orthotune.errors import RecipeError
from orthotune.files.json_file import read_json
from orthotune.files.safetensors_header import check_header
from orthotune.formats.codecs.written_header import kohya_hash
from orthotune.image.loop.skipped_steps import SkippedSteps
from orthotune.recipes import subject
from orthotune.recipes.load import load_settings
from orthotune.recipes.subject_settings import SubjectSettings, word_for
from orthotune.report.next_steps import next_steps
from orthotune.report.page import write_report
from orthotune.runs.checkpoint_on_signal import Stopped
from orthotune.runs.metrics_log import read_lines
from orthotune.worlds.image_folders import write_subject
from tests.support.tiny_pipelines import save_tiny


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stop")
    save_tiny("sd15", folder / "model")
    write_subject(folder / "nines")
    return folder


def settings(home: Path, output: Path, **fields: Any) -> SubjectSettings:
    usual = {
        "model": str(home / "model"), "instance_images": str(home / "nines"), "instance_prompt": "a sks digit",
        "batch_size": 2, "steps": 2, "save_every": 2, "sample_steps": 1, "sample_every": 9, "sample_seeds": [0],
        "learning_rate": 0.01, "schedule": "constant", "warmup": 0, "block_size": 4, "output": output,
    }  # fmt: skip
    return SubjectSettings(**usual | fields)


def quiet(message: str) -> None:
    """Drop the message."""


def asking(run: Path, *names: str) -> Callable[[str], None]:
    """A receiver of messages: files of these names are in the run directory when the training begins."""

    def watch(message: str) -> None:
        if message.startswith("oft:"):
            for name in names:
                (run / name).touch()

    return watch


class Signalling(SkippedSteps):
    """Sends a signal to the process during the second step."""

    def look(self, loss: Any, number: int, batch: Any) -> None:
        if number == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        super().look(loss, number, batch)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_stopped_run_leaves_an_adapter_a_report_and_how_to_go_on(home: Path, tmp_path: Path) -> None:
    run, longer = tmp_path / "run", tmp_path / "longer"
    with pytest.raises(Stopped, match="after step 1 of 2.*resume=auto output=") as stopped:
        subject.run(settings(home, run), asking(run, "stop-now"), bar=False)
    assert stopped.value.number == signal.SIGINT, "the exit status of Ctrl-C"
    record = read_json(run / "stopped.json")
    assert (record["steps"], record["planned_steps"], (run / "run.json").exists()) == (1, 2, False)
    assert same(run / "adapter", run / "checkpoints" / "checkpoint-1")
    page = write_report(run).read_text(encoding="utf-8")
    assert f"Go on with <code>orthotune train subject resume=auto output={run}</code>" in page
    assert orthotune.draw(run, "a sks digit", steps=1)[0].strength == 1.0
    subject.run(settings(home, run, resume="auto"), quiet, bar=False)
    assert not (run / "stopped.json").exists()
    # A finished run that is made longer is the longer run, also after it was stopped: its rate depends on no number
    # of steps.
    subject.run(settings(home, longer, steps=3), quiet, bar=False)
    assert subject.run(settings(home, run, steps=3, resume="auto"), quiet, bar=False).steps == 3
    assert same(run / "adapter", longer / "adapter") and (run / "run-2.json").is_file()
    page = write_report(run).read_text(encoding="utf-8")
    headings = ["What the model was shown", "Before and after", "Samples, step by step", "In numbers"]
    assert sorted(headings, key=page.index) == [one for one in headings if one in page] == headings
    with pytest.raises(RecipeError, match="steps=2 instead of 3.*may be raised, not lowered"):
        subject.run(settings(home, run, steps=2, resume="auto"), quiet, bar=False)


def test_samples_and_checkpoints_on_request(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("orthotune.image.loop.loop.SkippedSteps", Signalling)
    fields: dict[str, Any] = {"steps": 4, "save_every": 4, "keep_every": 3, "save_total_limit": 1}
    subject.run(settings(home, run, **fields), asking(run, "save-now"), bar=False)
    steps = sorted({entry["step"] for entry in json.loads((run / "samples.json").read_text())})
    # Samples by a signal in the second step; the checkpoint of step 1, by a file, has been replaced since.
    assert steps == [0, 2, 4] and not list(run.glob("*-now"))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("result", ["last", "best"])
def test_a_run_that_is_asked_to_finish_ends_in_order(home: Path, tmp_path: Path, result: str) -> None:
    run, short, notes = tmp_path / "run", tmp_path / "short", list[str]()

    def say(message: str) -> None:
        notes.append(message)
        if "parameters are trained" in message:
            (run / "finish-now").touch()

    fields: dict[str, Any] = {"held_out": 2, "eval_every": 9, "result": result}
    record = subject.run(settings(home, run, steps=4, save_every=4, **fields), say, bar=False)
    assert record.steps == 1 and record.stopped_by == {"rule": "finish-now", "step": 1}
    assert "finish-now ended the training after step 1 of 4." in notes and not list(run.glob("*-now"))
    lines = [line for line in read_lines(run / "metrics.jsonl") if "held_out_loss" in line]
    assert [line["step"] for line in lines] == [0, 1]
    kept = {"last": 1, "best": record.result_step}[result]
    assert record.scores_after["held_out_loss"] == {line["step"]: line["held_out_loss"] for line in lines}[kept]
    if kept == 1:
        subject.run(settings(home, short, steps=1, save_every=1, **fields), quiet, bar=False)
        assert same(run / "adapter", short / "adapter")


def test_the_best_parameters_by_a_held_out_loss(home: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    # At this rate the loss rises after some steps.
    fields: dict[str, Any] = {"held_out": 2, "eval_every": 1, "result": "best", "learning_rate": 3.0, "steps": 6}
    notes: list[str] = []
    record = subject.run(settings(home, run, stop_when={"patience": 2}, **fields), notes.append, bar=False)
    lines = [line for line in read_lines(run / "metrics.jsonl") if "held_out_loss" in line]
    losses = {line["step"]: line["held_out_loss"] for line in lines}
    best = min(losses, key=lambda step: losses[step])
    assert record.result_step == best and record.stopped_by is not None and record.steps == best + 2 < 6
    assert record.scores_before["held_out_loss"] == losses[0] and record.scores_after["held_out_loss"] == losses[best]
    assert any("Held out, not trained on: 2 images." in one for one in notes)
    assert any("stop_when.patience=2 ended" in one for one in notes)
    assert any("result=best" in one and ("the base" in one or f"of step {best}" in one) for one in notes)
    steps = sorted({entry["step"] for entry in json.loads((run / "samples.json").read_text())})
    assert steps == [0, record.steps]
    if best == 0:  # the parameters of step 0 are the base
        assert all(not value.any() for value in weights(run / "adapter").values())
    assert load_file(run / "checkpoints" / f"checkpoint-{record.steps}" / "best.safetensors").keys()


def test_class_images_measure_forgetting(home: Path, tmp_path: Path) -> None:
    fields = {"held_out": 0.4, "class_prompt": "a digit", "class_count": 4, "class_steps": 1, "steps": 2}
    record = subject.run(settings(home, tmp_path / "run", **fields), quiet, bar=False)
    assert {"held_out_loss", "old_held_out_loss"} <= record.scores_after.keys()
    line = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]
    change = record.scores_before["held_out_loss"] - record.scores_after["held_out_loss"]
    assert line["gain"] == pytest.approx(change, abs=1e-12) and "forgetting" in line


def test_an_adapter_is_trained_further_from_exactly_its_parameters(home: Path, tmp_path: Path) -> None:
    subject.run(settings(home, tmp_path / "first", steps=1), quiet, bar=False)
    on = {"adapter": tmp_path / "first", "block_size": None, "learning_rate": 1e-12, "steps": 1}
    notes: list[str] = []
    subject.run(settings(home, tmp_path / "second", **on), notes.append, bar=False)
    assert any("is trained further" in note for note in notes)
    for name, value in weights(tmp_path / "first" / "adapter").items():
        # One step of Adam at this rate.
        torch.testing.assert_close(weights(tmp_path / "second" / "adapter")[name], value, rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="block_size=8 is decided by the adapter"):
        settings(home, tmp_path / "third", adapter=tmp_path / "first", block_size=8)


def test_what_decides_has_to_be_measured(home: Path, tmp_path: Path) -> None:
    for fields, message in (
        ({"result": "best"}, "needs a loss on images that are not trained on"),
        ({"stop_when": {"patience": 2}}, "none are held out"),
        ({"held_out": 2.5}, "neither a number of images nor a share"),
        ({"held_out": 1, "stop_when": {"forgetting": 0.1}}, "needs class images"),
        ({"held_out": 1, "stop_when": {"patient": 1}}, "unknown key 'patient'"),
    ):
        with pytest.raises(ValueError, match=message):
            settings(home, tmp_path / "run", **fields)
    with pytest.raises(RecipeError, match="held_out=5.*at least one image to train on"):
        subject.run(settings(home, tmp_path / "run", held_out=5), quiet, bar=False)
    assert not (tmp_path / "run" / "run.json").exists()


def test_the_next_command_generates_images() -> None:
    run = {"recipe": "subject", "method": "oft", "artifacts": {"adapter": "adapter"},
           "settings": {"instance_prompt": "a sks dog"}}  # fmt: skip
    assert next_steps(run, Path("r"))[0][0] == "orthotune draw r 'a sks dog' --strength 0.5,1 --both"


def test_the_file_says_what_the_adapter_is(home: Path, tmp_path: Path) -> None:
    concepts = [
        {"images": str(home / "nines"), "prompt": "a sks digit", "repeats": 20, "class_prompt": "a digit"},
        {"images": str(home / "nines"), "prompt": "a red three", "repeats": 10, "token": "three"},
    ]
    fields = {"concepts": concepts, "class_count": 2, "class_steps": 1, "steps": 1, "made_for": "comfyui"}
    usual = {
        "model": str(home / "model"),
        "batch_size": 3,
        "sample_steps": 1,
        "block_size": 4,
        "output": tmp_path / "run",
    }
    told: list[str] = []
    asked = SubjectSettings(**usual | fields)  # type: ignore[arg-type]
    assert asked.prior and [word_for(one) for one in asked.all_concepts] == ["sks", "three"]
    subject.run(asked, told.append, bar=False)
    assert "Concepts: 5 images of 'a sks digit', 2 of each; 5 images of 'a red three'." in told
    assert len(list((tmp_path / "run" / "class-images" / "concept-1").glob("*.png"))) == 2
    assert not (tmp_path / "run" / "class-images" / "concept-2").exists()
    path = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    entries = check_header(path).metadata
    tensors = load_file(path)
    assert entries["modelspec.trigger_phrase"] == "sks, three" and entries["format"] == "pt"
    assert entries["modelspec.architecture"] == "stable-diffusion-v1/oft" and str(home) not in str(entries)
    assert entries["modelspec.hash_sha256"] == f"0x{kohya_hash(tensors)}"
    assert entries["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    out = orthotune.convert(path.parent, tmp_path / "c.safetensors", "comfyui", base=home / "model").written
    assert check_header(Path(out)).metadata["modelspec.trigger_phrase"] == "sks, three"
    # The record of the run is enough to go on with.
    again = load_settings(SubjectSettings, None, ["resume=auto", f"output={tmp_path / 'run'}"])
    assert again.record() | {"resume": "never"} == asked.record() and again.instance_prompt == "a sks digit"
    with pytest.raises(ValueError, match="token and concepts are mutually exclusive"):
        SubjectSettings(**usual | fields | {"token": "x"})  # type: ignore[arg-type]
