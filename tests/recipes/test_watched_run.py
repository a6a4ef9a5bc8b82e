"""Learning that is watched: gain and forgetting in the log, rules that end a run, and the best parameters as result."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.errors import RecipeError
from orthotune.metrics.text_loss import TextLoss
from orthotune.recipes import sft
from orthotune.recipes.load import load_settings
from orthotune.recipes.settings import SFTSettings
from tests.support.tiny_text import texts, write_jsonl


@pytest.fixture
def job(model_path: Path, text_path: Path, old_path: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_path), "data": str(text_path), "old_data": str(old_path), "steps": 6, "batch_size": 2,
        "max_length": 32, "learning_rate": 1e-2, "block_size": 8, "eval_every": 1, "save_every": 2,
        "output": tmp_path / "run",
    }  # fmt: skip


class _Course(TrainerCallback):
    """Losses of either domain by step, in place of those of the model; an accident before a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, new: list[float], old: list[float]) -> None:
        self.step, self.calls, self.accident = 0, 0, -1
        self.losses = {"new": new, "old": old}
        monkeypatch.setattr("orthotune.text.step_log.mean_loss", self.loss)

    def loss(self, model: Any, rows: Any) -> TextLoss:
        domain = ("new", "old")[self.calls % 2]
        self.calls += 1
        return TextLoss(self.losses[domain][self.step], 1)

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step + 1 == self.accident:
            raise KeyboardInterrupt
        self.step = state.global_step + 1


def _run(job: dict[str, Any], *callbacks: TrainerCallback, said: list[str] | None = None, **changes: Any) -> Any:
    say = (lambda _: None) if said is None else said.append
    return sft.run(SFTSettings(**(job | changes)), say=say, callbacks=callbacks, bar=False)


def _lines(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _weights(run: Path) -> dict[str, torch.Tensor]:
    kept = run / "adapter" / "adapter_model.safetensors"
    return load_file(kept if kept.is_file() else run / "model" / "model.safetensors")


def _equal(one: Path, other: Path) -> bool:
    a, b = _weights(one), _weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The log.


def test_each_measurement_has_gain_and_forgetting(job: dict[str, Any]) -> None:
    record = _run(job, eval_every=3)
    measured = [line for line in _lines(job["output"]) if "new_nats" in line]
    assert [line["step"] for line in measured] == [0, 3, 6]
    for line in measured:
        assert line["gain"] == measured[0]["new_nats"] - line["new_nats"]
        assert line["forgetting"] == line["old_nats"] - measured[0]["old_nats"]
    assert (measured[-1]["gain"], measured[-1]["forgetting"]) == (record.gain, record.forgetting)
    assert record.scores_before == {} and record.stopped_by is None and record.result_step is None
    assert not {"gain", "forgetting"} & {
        key for line in _lines(job["output"]) if "new_nats" not in line for key in line
    }


def test_without_a_source_domain_there_is_no_forgetting(job: dict[str, Any]) -> None:
    _run(job, old_data="none", steps=1)
    assert all("gain" in line and "forgetting" not in line for line in _lines(job["output"]))


# Rules.

NEW, OLD = [4.0, 3.5, 3.25, 3.125, 3.0, 3.0, 3.0], [2.0, 2.0, 2.0625, 2.125, 2.5, 2.75, 3.0]


@pytest.mark.parametrize(
    ("rules", "step"),
    [({"forgetting": 0.1}, 3), ({"gain": 0.75}, 2), ({"patience": 1}, 4), ({"patience": 2}, 5), ({"gain": 9}, None)],
)
def test_a_rule_ends_the_run_in_order(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, rules: dict[str, Any], step: int | None
) -> None:
    said: list[str] = []
    record = _run(job, _Course(monkeypatch, NEW, OLD), said=said, stop_when=rules)
    written = json.loads((job["output"] / "run.json").read_text())
    assert written == json.loads(record.model_dump_json())
    assert (job["output"] / "adapter" / "adapter_model.safetensors").is_file()
    if step is None:
        assert record.stopped_by is None and record.steps == 6
        return
    (rule,) = rules
    stopped = record.stopped_by
    assert (stopped["rule"], stopped["limit"], stopped["step"]) == (rule, rules[rule], step) and record.steps == step
    assert stopped["gain"] == record.gain == NEW[0] - NEW[step]
    assert stopped["forgetting"] == record.forgetting == OLD[step] - OLD[0]
    assert _lines(job["output"])[-1]["step"] == step
    assert (job["output"] / "checkpoints" / f"checkpoint-{step}").is_dir()
    sentence = next(words for words in said if f"stop_when.{rule}" in words)
    assert f"after step {step} of 6" in sentence and sentence in record.notes
    # A run that was stopped is finished.
    said.clear()
    assert _run(job, said=said, stop_when=rules, resume="auto") == record
    assert len(said) == 1 and "holds this run, finished" in said[0] and f"stop_when.{rule}" in said[0]


def test_the_last_step_is_no_early_end(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    record = _run(job, _Course(monkeypatch, NEW, OLD), stop_when={"gain": 1.0}, steps=4)
    assert (record.steps, record.stopped_by) == (4, None)


def test_a_run_that_was_stopped_and_killed_before_its_record_makes_no_further_step(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = _run(job, _Course(monkeypatch, NEW, OLD), stop_when={"gain": 0.75})
    (job["output"] / "run.json").unlink()
    (job["output"] / "adapter").rename(tmp_path / "before")
    again = _run(job, stop_when={"gain": 0.75}, resume="auto")
    assert again.stopped_by == first.stopped_by and (again.steps, again.gain) == (first.steps, first.gain)
    assert _lines(job["output"])[-1]["step"] == 2
    expected = load_file(tmp_path / "before" / "adapter_model.safetensors")
    assert all(torch.equal(value, expected[name]) for name, value in _weights(job["output"]).items())


def test_patience_counts_over_sittings(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    course = _Course(monkeypatch, NEW, OLD)
    course.accident = 5  # step 4 was the first measurement that was no better
    with pytest.raises(KeyboardInterrupt):
        _run(job, course, stop_when={"patience": 2})
    course.accident = -1
    record = _run(job, course, stop_when={"patience": 2}, resume="auto")
    assert record.stopped_by["step"] == 5 and record.stopped_by["best_step"] == 3


def test_a_log_from_before_gain_was_written_resumes(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    course = _Course(monkeypatch, NEW, OLD)
    course.accident = 4
    with pytest.raises(KeyboardInterrupt):
        _run(job, course)
    metrics = job["output"] / "metrics.jsonl"
    old = [{k: v for k, v in json.loads(line).items() if k not in ("gain", "forgetting")}
           for line in metrics.read_text().splitlines()]  # fmt: skip
    metrics.write_text("".join(json.dumps(line) + "\n" for line in old))
    course.accident = -1
    record = _run(job, course, resume="auto")
    assert (record.gain, record.forgetting) == (1.0, 1.0)
    assert _lines(job["output"])[-1]["gain"] == 1.0


# The best parameters.


@pytest.mark.parametrize("method", ["oft", "lora", "full"])
def test_the_best_parameters_are_the_result_and_survive_a_kill(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    job |= {"method": method, "block_size": 8 if method == "oft" else None}
    course = _Course(monkeypatch, NEW, OLD)
    # The best measurement is at step 3, in which a run of so many steps ends when its rate is the same.
    job |= {"schedule": "constant", "warmup": 0}
    _run(job, course, steps=3, output=tmp_path / "three")
    course.calls = course.step = 0
    said: list[str] = []
    best = _run(job, course, said=said, result="best", output=tmp_path / "best")
    assert _equal(tmp_path / "three", tmp_path / "best")
    assert best.result_step == 3 and (best.gain, best.forgetting) == (0.875, 0.125)
    assert best.steps == 6 and any("step 3" in words and words in best.notes for words in said)
    # Killed in step 6, after the checkpoint of step 4: the parameters of step 3 are in it.
    course.calls, course.step, course.accident = 0, 0, 6
    with pytest.raises(KeyboardInterrupt):
        _run(job, course, result="best", output=tmp_path / "cut")
    course.accident = -1
    resumed = _run(job, course, result="best", output=tmp_path / "cut", resume="auto")
    assert _equal(tmp_path / "cut", tmp_path / "best")
    assert (resumed.result_step, resumed.gain, resumed.drift) == (3, best.gain, best.drift)


def test_a_run_that_only_forgets_ends_as_the_base(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    record = _run(job, _Course(monkeypatch, [3.0] * 7, OLD), said=said, result="best", steps=3)
    assert record.result_step == 0 and (record.gain, record.forgetting) == (0, 0)
    assert record.weights.angle_change == pytest.approx(0, abs=1e-6)
    assert any("no measurement" in words for words in said)


def test_too_few_texts_to_hold_some_out_are_refused_before_training(job: dict[str, Any], tmp_path: Path) -> None:
    few = str(write_jsonl(tmp_path / "few.jsonl", texts(8, "blue")))
    for changes, words in (({"result": "best"}, "result=best"), ({"stop_when": {"gain": 1.0}}, "stop_when.gain")):
        with pytest.raises(RecipeError, match=f"{words}.*no held-out texts of the target domain.*eval_data=FILE"):
            _run(job, data=few, **changes)
    assert not job["output"].exists()


def test_a_rule_and_the_best_parameters_together(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    record = _run(job, _Course(monkeypatch, NEW, OLD), result="best", stop_when={"patience": 2})
    assert (record.stopped_by["step"], record.result_step, record.steps) == (5, 3, 5)
    assert record.gain == 0.875 and record.stopped_by["gain"] == 1.0


@pytest.mark.parametrize("changes", [{"stop_when": {"gain": 0.75}}, {"result": "best"}])
def test_what_is_measured_at_the_end_is_that_of_the_result(
    job: dict[str, Any], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    asked: list[float] = []

    def answers(model: Any) -> dict[str, float]:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        asked.append(sum(float(one.detach().abs().sum()) for one in parameters))
        return {"answers": asked[-1]}

    monkeypatch.setattr(sft, "_answers", lambda trainer: answers)
    record = _run(job, _Course(monkeypatch, NEW, OLD), answers=True, **changes)
    assert record.scores_before == {"answers": asked[0]} and record.scores_after == {"answers": asked[-1]}
    saved = sum(float(value.abs().sum()) for value in _weights(job["output"]).values())
    assert asked[-1] == pytest.approx(saved, rel=1e-5) and asked[-1] != asked[0]


# Settings.


def test_records_leave_the_settings_out_at_their_default() -> None:
    plain = SFTSettings(output="somewhere")
    assert not {"stop_when", "result", "rewind"} & plain.record().keys()
    given = SFTSettings(stop_when={"forgetting": 0.05, "patience": 3}, result="best", rewind="auto", output="somewhere")
    record = json.loads(json.dumps(given.record()))
    assert record["stop_when"] == {"forgetting": 0.05, "patience": 3}
    assert (record["result"], record["rewind"]) == ("best", "auto")
    assert SFTSettings(**record).record() == record
    assert SFTSettings(**plain.record()).record() == plain.record()  # an older record


def test_the_command_line_takes_a_mapping_or_dotted_keys() -> None:
    for words in (["stop_when={forgetting: 0.05, patience: 2}"], ["stop_when.forgetting=0.05", "stop_when.patience=2"]):
        assert load_settings(SFTSettings, None, words).stop_when == {"forgetting": 0.05, "patience": 2}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stop_when": {"forgeting": 0.1}}, "unknown key 'forgeting' of stop_when. Did you mean 'forgetting'?"),
        ({"stop_when": {"x": 0.1}}, "unknown key 'x' of stop_when. Known keys: forgetting, gain, patience"),
        ({"stop_when": {"forgetting": "much"}}, "stop_when.forgetting='much' is no number of nats per token"),
        ({"stop_when": {"forgetting": -0.1}}, "stop_when.forgetting=-0.1 would end every run"),
        ({"stop_when": {"forgetting": True}}, "stop_when.forgetting=True is no number"),
        ({"stop_when": {"gain": float("nan")}}, "stop_when.gain=nan is no number"),
        ({"stop_when": {"gain": 0}}, "stop_when.gain=0 would end every run"),
        ({"stop_when": {"patience": 0}}, "stop_when.patience=0 .*whole number of measurements, at least 1"),
        ({"stop_when": {"patience": -2}}, "stop_when.patience=-2 .*at least 1"),
        ({"stop_when": {"patience": 1.5}}, "stop_when.patience=1.5 .*whole number"),
        ({"stop_when": {"patience": True}}, "stop_when.patience=True .*whole number"),
        ({"stop_when": 0.05}, "dictionary"),
        ({"stop_when": {"forgetting": 0.1}, "old_data": "none"}, "stop_when.forgetting .*old_data=none"),
        ({"stop_when": {"forgetting": -1, "patience": 0}}, "would end every run.*at least 1"),
        ({"result": "first"}, "'last' or 'best'"),
        ({"result": "best", "distributed": "fsdp2"}, "result=best .*distributed=fsdp2.*ddp"),
        ({"rewind": "all"}, "'none', 'auto', 'kind', 'projection', 'depth' or 'layer'"),
        ({"rewind": "auto", "old_data": "none"}, "rewind .*old_data=none"),
        ({"rewind": "auto", "distributed": "ddp"}, "rewind .*distributed=ddp.*orthotune rewind"),
        ({"rewind": "auto", "method": "full", "model": "m", "data": "d"}, "rewind .*method=full.*old_data=FILE"),
        ({"rewind": "auto", "method": "lora", "lora": {"use_dora": True}}, "lora.use_dora"),
        ({"rewind": "auto", "rotation": {"modules_to_save": ["lm_head"]}}, "rotation.modules_to_save"),
    ],
)
def test_contradictions(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SFTSettings(**values)


def test_the_command_line_names_what_is_wrong(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("steps: 2\nstop_when:\n  patients: 3\n")
    failed = CliRunner().invoke(app, ["train", "sft", str(recipe)])
    assert failed.exit_code == 2 and "Traceback" not in failed.stderr
    assert re.search(r"recipe.yaml, line 3: unknown key 'patients' of stop_when.*'patience'", failed.stderr), (
        failed.stderr
    )
    with pytest.raises(RecipeError, match="command line: stop_when.patience=0"):
        load_settings(SFTSettings, None, ["stop_when.patience=0"])
