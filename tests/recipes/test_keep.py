"""Outputs kept on old texts, in the language recipe: settings, texts, what a run writes, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.errors import DataError
from orthotune.experiments.settings import settings_of
from orthotune.recipes import magnitude, sft
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.sft_data import keep_notes, kept_examples
from orthotune.text.written_texts import FILE, TEXTS, read_texts
from tests.support.tiny_text import write_jsonl

# Settings.


def test_nothing_is_kept_unless_asked_for() -> None:
    settings = SFTSettings()
    assert (settings.keep, settings.keep_data, settings.keep_batch) == (0, None, None)
    assert kept_examples(settings) is None and keep_notes(settings) == []


def test_what_was_left_open_is_filled_in() -> None:
    world = SFTSettings(keep=1)
    assert (world.keep_data, world.keep_batch) == ("text-world/old_train", 4)
    other = SFTSettings(keep=1, model="m", data="d", batch_size=1)
    assert (other.keep_data, other.keep_batch) == ("generated", 1)
    said = SFTSettings(keep=0.5, keep_data="old.jsonl", keep_batch=3)
    assert (said.keep_data, said.keep_batch) == ("old.jsonl", 3)


@pytest.mark.parametrize("method", ["oft", "coft", "lora"])
def test_a_record_gives_the_same_settings_again(method: str) -> None:
    settings = SFTSettings(method=method, keep=2, output="somewhere")
    assert SFTSettings(**settings.record()).record() == settings.record()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "full", "keep": 1}, "keep has no meaning for method=full. Leave it out, or choose method=oft"),
        ({"keep_data": "generated"}, "keep_data has no meaning without keep. Add keep=1, or leave keep_data out"),
        ({"keep": 0, "keep_batch": 2}, "keep_batch has no meaning without keep"),
        ({"keep": -1}, "greater than or equal to 0"),
        ({"keep": float("nan")}, "finite number|greater than or equal"),
        ({"keep": 1, "rotation": {"bias": "all"}}, "of which rotation.bias=all trains a part"),
        ({"method": "lora", "keep": 1, "lora": {"bias": "lora_only"}}, "of which lora.bias=lora_only trains a part"),
        ({"keep": 1, "distributed": "zero2"}, "which distributed=zero2 is not run with. Choose distributed=ddp"),
        ({"keep": 1, "keep_data": "generated", "distributed": "fsdp2"}, "keep_data=generated needs a complete base"),
    ],
)
def test_contradictions(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SFTSettings(**values)


def test_a_comparison_keeps_what_can_be_kept() -> None:
    said = {"keep": 1, "keep_batch": 2}
    assert SFTSettings(**settings_of("lora", said, SFTSettings)).keep == 1
    assert not said.keys() & settings_of("full", said, SFTSettings).keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kepe=1"], "command line: unknown key 'kepe'. Did you mean 'keep'?"),
        (["keep=much"], "command line: keep='much'"),
        (["--method", "full", "keep=1"], "keep has no meaning for method=full"),
        (["keep=1", "keep_data=text-world/old_tarin"], "Did you mean 'old_train'?"),
        (["keep=1", "keep_data=./nowhere.jsonl"], "data './nowhere.jsonl'. Found: no such file or directory"),
    ],
)
def test_faults_are_one_line_on_the_command_line(words: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "sft", *words, "--output", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert message in result.output and len(result.output.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


# Texts.


def test_the_texts_are_found(old_path: Path) -> None:
    world = kept_examples(SFTSettings(keep=1))
    assert world is not None and world.source == "text-world/old_train"
    assert sum(len(row["text"]) for row in world.rows) > 250_000
    given = kept_examples(SFTSettings(keep=1, keep_data=str(old_path)))
    assert given is not None and len(given.rows) == 4
    assert kept_examples(SFTSettings(keep=1, keep_data="generated")) is None
    with pytest.raises(DataError, match="Did you mean 'old_train'"):
        kept_examples(SFTSettings(keep=1, keep_data="text-world/old_tarin"))
    with pytest.raises(DataError, match="keep_data 'genrated'. Found: no such file. Did you mean 'generated'"):
        kept_examples(SFTSettings(keep=1, keep_data="genrated"))


def test_measuring_on_what_was_trained_on_is_told(old_path: Path) -> None:
    words = "keep_data is old_data"
    path = str(old_path)
    aside = str(old_path.parent / "." / ".." / old_path.parent.name / old_path.name)
    for data, old, same in [
        (path, path, True), (path, aside, True), (path, None, False), ("generated", None, False),
        ("text-world/old_validation", None, True), (path, "none", False),
    ]:  # fmt: skip
        said = keep_notes(SFTSettings(model="m", data="d", keep=1, keep_data=data, old_data=old))
        assert (words in " ".join(said)) == same, (data, old)
    assert not any(words in line for line in keep_notes(SFTSettings(keep=1)))


# Runs.


@pytest.fixture
def job(model_path: Path, text_path: Path, old_path: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_path), "data": str(text_path), "old_data": str(old_path), "steps": 6, "batch_size": 2,
        "max_length": 16, "learning_rate": 1e-2, "save_every": 2, "eval_every": 6, "keep": 2,
        "output": tmp_path / "run",
    }  # fmt: skip


def _run(job: dict[str, Any], *callbacks: TrainerCallback, **changes: Any) -> Any:
    return sft.run(SFTSettings(**(job | changes)), say=lambda _: None, callbacks=callbacks, bar=False)


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in ("seconds", "diagnosis")} for line in lines]


class _Stop(TrainerCallback):
    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("method", "more"),
    [
        # Dropout draws random numbers in both losses of a step.
        ("oft", {"block_size": 8, "gradient_accumulation": 2, "rotation": {"module_dropout": 0.2}}),
        ("lora", {"keep_data": "OLD", "keep_batch": 3}),
    ],
)
def test_an_interrupted_run_ends_with_the_same_bits(
    job: dict[str, Any], method: str, more: dict[str, Any], tmp_path: Path, old_path: Path
) -> None:
    job |= more | {"method": method} | ({"keep_data": str(old_path)} if "keep_data" in more else {})
    _run(job, output=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(job, _Stop())
    resumed = _run(job, resume="auto")
    expected, found = (load_file(tmp_path / run / "adapter" / "adapter_model.safetensors") for run in ("whole", "run"))
    # float32 on a CPU, and rows that are drawn by seed, step and part.
    assert expected and all(torch.equal(expected[name], found[name]) for name in expected)
    assert _lines(tmp_path / "whole") == _lines(tmp_path / "run")
    kept = [line["keep_nats"] for line in _lines(tmp_path / "run")[1:]]
    # The first step has a rate of zero, so two of them see the base itself.
    assert kept[:2] == pytest.approx([0, 0], abs=1e-6) and all(nats > 0 for nats in kept[2:])
    written = [(tmp_path / run / FILE).is_file() for run in ("whole", "run")]
    assert written == [method == "oft"] * 2
    assert any(line.startswith("keep: 2 x KL") for line in resumed.notes)


def test_the_order_of_the_data_is_the_one_without_keeping(job: dict[str, Any], tmp_path: Path) -> None:
    # So weak a penalty that the losses can only differ by it: the same rows in the same order.
    _run(job, keep=1e-9)
    _run(job, keep=0, output=tmp_path / "without")
    kept, without = _lines(job["output"]), _lines(tmp_path / "without")
    losses = [[line["train_loss"] for line in lines[1:]] for lines in (kept, without)]
    # 1e-9 of a divergence; what Adam makes of it in a gradient that is zero stays below 1e-4.
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert all("keep_nats" not in line for line in without)


def test_texts_of_the_base_are_written_once(job: dict[str, Any], tmp_path: Path) -> None:
    _run(job, steps=1)
    text = (job["output"] / FILE).read_text()
    rows = read_texts(job["output"] / FILE)
    assert len(rows) == TEXTS and len({tuple(row.input_ids) for row in rows}) > TEXTS // 2
    # This tokenizer has no begin token: a text begins with the end token, and goes to the next one.
    assert all(row.input_ids[0] == 0 and 2 <= len(row.input_ids) <= 16 for row in rows)
    assert all(0 not in row.input_ids[1:-1] for row in rows)
    _run(job, steps=1, output=tmp_path / "again", method="lora")
    assert (tmp_path / "again" / FILE).read_text() == text  # the base's, whatever the method
    # They are data like any other.
    _run(job, steps=1, output=tmp_path / "named", keep_data=str(job["output"] / FILE))


def test_a_run_that_lost_its_texts_does_not_go_on_with_others(job: dict[str, Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(job, _Stop())
    (job["output"] / FILE).write_text('{"text": "damaged"}\n')
    with pytest.raises(DataError, match="Needed: the texts that this run began with"):
        _run(job, resume="auto")
    (job["output"] / FILE).unlink()
    with pytest.raises(DataError, match="no such file"):
        _run(job, resume="auto")


def test_a_run_goes_on_in_another_folder_with_its_texts(job: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(job, _Stop())
    checkpoint = job["output"] / "checkpoints" / "checkpoint-4"
    _run(job, resume=str(checkpoint), output=tmp_path / "there")
    assert (tmp_path / "there" / FILE).read_bytes() == (job["output"] / FILE).read_bytes()


def test_texts_without_anything_to_predict_do_not_take_the_output(job: dict[str, Any], tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    data = write_jsonl(tmp_path / "long.jsonl", [{"prompt": "a" * 40, "completion": "b"}] * 3)
    with pytest.raises(DataError, match="keep_data. Found: no example with anything to predict in its first 16 tokens"):
        _run(job, data=str(pairs), keep_data=str(data))
    _run(job, data=str(pairs), keep_data=str(pairs), steps=1)  # the folder is still free


def test_magnitudes_are_fitted_with_the_same_loss(job: dict[str, Any], tmp_path: Path) -> None:
    _run(job, steps=4)
    before = load_file(job["output"] / "adapter" / "adapter_model.safetensors")
    settings = magnitude.load_magnitude(None, [f"adapter={job['output']}", "steps=2", f"output={tmp_path / 'scaled'}"])
    magnitude.run(settings, say=lambda _: None, bar=False)
    # The base is the one without the rotation, which has moved already, and which stays frozen.
    assert all(line["keep_nats"] > 0 for line in _lines(tmp_path / "scaled")[1:])
    after = load_file(tmp_path / "scaled" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert (tmp_path / "scaled" / FILE).read_bytes() == (job["output"] / FILE).read_bytes()
