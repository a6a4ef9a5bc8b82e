"""A language recipe is a description: preferences by TRL's DPO, through the run that all language recipes share."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from datasets import Dataset
from pydantic import Field
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, TrainerCallback
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from orthotune import PeftModel
from orthotune.recipes.text_job import TextJob, TrainerInputs, source_of, trainer_arguments
from orthotune.recipes.text_run import run_text
from orthotune.recipes.text_settings import TextSettings
from orthotune.runs.checkpoint_manifest import check
from orthotune.runs.checkpoint_on_signal import Stopped
from orthotune.runs.curve import draw_scores
from orthotune.runs.data_files import Row, read_rows
from orthotune.runs.record import RunRecord
from orthotune.text.arguments import run_arguments
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.step_log import Measure
from orthotune.text.trainer import RunTrainer, run_trainer
from tests.support.tiny_text import write_jsonl

# The recipe.


class PreferenceSettings(TextSettings):
    """Everything that decides a run on preferences."""

    recipe: ClassVar[str] = "preferences"

    data: str = Field(description="File with prompt, chosen and rejected.")
    held_out: int = 2
    beta: float = Field(0.1, gt=0, description="How close the model stays to its base.")


def run(settings: PreferenceSettings, say: Callable[[str], None], *callbacks: TrainerCallback) -> RunRecord:
    return run_text(settings, job(settings), say, callbacks, bar=False)


def job(settings: PreferenceSettings) -> TextJob:
    source = source_of(settings)
    return TextJob(
        data=lambda: [row for _, row in read_rows(Path(settings.data))],
        tokenizer=lambda: load_tokenizer(source),
        model=lambda dtype: load_model(source, dtype, settings.quantization),
        trainer=lambda given: _trainer(settings, given),
        notes=[f"preferences: beta={settings.beta:g}."],
        measures=lambda trainer: [_held_out(trainer)],
        entries=["rewards/margins"],
        curve=partial(draw_scores, names=["preference_loss"], heading="Held-out preferences"),
    )


def _trainer(settings: PreferenceSettings, given: TrainerInputs) -> RunTrainer:
    rows: list[Row] = given.data
    make = partial(run_arguments, DPOConfig)
    arguments = trainer_arguments(
        make, settings, given.checkpoints, given.dtype, max_length=settings.max_length, beta=settings.beta
    )
    trainer: RunTrainer = run_trainer(DPOTrainer)(
        given.model,
        args=arguments,
        train_dataset=Dataset.from_list(rows[settings.held_out :]),
        eval_dataset=Dataset.from_list(rows[: settings.held_out]),
        processing_class=given.tokenizer,
        peft_config=given.adapter,
        parts=given.parts,
    )
    return trainer


def _held_out(trainer: Any) -> Measure:
    def measure(model: Any) -> dict[str, float]:
        was_training = model.training
        model.eval()
        losses = [trainer.prediction_step(model, batch, True)[0].item() for batch in trainer.get_eval_dataloader()]
        model.train(was_training)
        return {"preference_loss": sum(losses) / len(losses)}

    return measure


def reward_job(settings: PreferenceSettings) -> TextJob:
    """A reward model from the same preferences: another class of model, with a head that is trained in full."""

    def trainer(given: TrainerInputs) -> Any:
        make = partial(run_arguments, RewardConfig)
        arguments = trainer_arguments(make, settings, given.checkpoints, given.dtype, max_length=settings.max_length)
        data = Dataset.from_list(given.data)
        return run_trainer(RewardTrainer)(
            given.model, args=arguments, train_dataset=data, processing_class=given.tokenizer,
            peft_config=given.adapter, parts=given.parts,
        )  # fmt: skip

    def model(dtype: torch.dtype) -> Any:
        torch.manual_seed(settings.seed)  # of the head
        return AutoModelForSequenceClassification.from_pretrained(settings.model, num_labels=1, dtype=dtype)

    return TextJob(
        data=lambda: [row for _, row in read_rows(Path(settings.data))],
        tokenizer=lambda: load_tokenizer(settings.model),
        model=model,
        trainer=trainer,
        entries=["accuracy"],
        task="SEQ_CLS",
        curve=draw_scores,
    )


# Its runs.


@pytest.fixture
def settings(model_path: Path, tmp_path: Path) -> Callable[..., PreferenceSettings]:
    rows = [{"prompt": f"count {n}: ", "chosen": "up " * (1 + n % 3), "rejected": "down"} for n in range(10)]
    given = {"model": str(model_path), "data": str(write_jsonl(tmp_path / "pairs.jsonl", rows)), "steps": 4}
    given |= {"batch_size": 2, "block_size": 8, "max_length": 32, "learning_rate": 1e-2, "warmup": 0, "save_every": 2}
    return lambda output, **more: PreferenceSettings(**(given | more), output=tmp_path / output)


class _At(TrainerCallback):
    """Does something to the model before a step."""

    def __init__(self, step: int, do: Callable[[Any], object]) -> None:
        self.step, self.do = step, do

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step + 1 == self.step:
            self.do(seen["model"])


def _spoil(model: Any) -> None:
    """NaN out of a layer in the next forward of a training."""
    layer = model.base_model.model.get_submodule("model.layers.0.mlp.up_proj")

    def spoiled(module: Any, _: Any, output: torch.Tensor) -> torch.Tensor:
        hook.remove()
        return output * float("nan")

    hook = layer.register_forward_hook(spoiled)


def _lines(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("method", ["oft", "lora", "full"])
def test_a_run_leaves_everything_behind(settings: Callable[..., Any], method: str) -> None:
    given = settings("run", method=method, **({} if method == "oft" else {"block_size": None}))
    messages: list[str] = []
    record = run(given, messages.append)
    assert json.loads((given.output / "run.json").read_text()) == json.loads(record.model_dump_json())
    assert (record.recipe, record.method, record.steps, record.skipped_steps) == ("preferences", method, 4, 0)
    assert record.scores_before["preference_loss"] == pytest.approx(0.6931, abs=1e-3)  # ln 2: the base itself
    assert record.scores_after["preference_loss"] < record.scores_before["preference_loss"]
    assert record.new_before is None and record.drift is None and record.weights.angle_change is not None
    assert messages[0].splitlines()[1] == "preferences: beta=0.1." and "parameters are trained, 4 steps." in messages[0]
    assert (given.output / "curve.png").read_bytes().startswith(b"\x89PNG")
    lines = _lines(given.output)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[1]["train_loss"] == pytest.approx(0.6931, abs=1e-3) and lines[1]["gradient_norm"] > 0
    assert all("rewards/margins" in line for line in lines[1:])
    assert check(given.output / "checkpoints" / "checkpoint-4") == 4
    kept = given.output / ("model" if method == "full" else "adapter")
    assert (kept / "tokenizer.json").is_file()
    if method != "full":
        base = load_model(given.model, torch.float32)
        assert not PeftModel.from_pretrained(base, str(kept)).training


def test_a_run_that_a_signal_cut_after_two_steps_ends_with_the_same_bits(settings: Callable[..., Any]) -> None:
    complete, cut = settings("complete"), settings("cut")
    run(complete, lambda _: None)
    with pytest.raises(Stopped, match="after step 2 of 4, which checkpoint-2 holds.*resume=auto"):
        run(cut, lambda _: None, _At(2, lambda _: signal.raise_signal(signal.SIGTERM)))
    assert not (cut.output / "run.json").exists() and not (cut.output / "adapter").exists()
    run(settings("cut", resume="auto"), lambda _: None)
    expected, found = (load_file(one.output / "adapter" / "adapter_model.safetensors") for one in (complete, cut))
    # float32 on a CPU: resuming restores parameters, optimizer, schedule, order of data and random state exactly.
    assert expected and expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert _lines(complete.output) == _lines(cut.output)


def test_a_step_that_is_not_finite_is_skipped_and_recorded(settings: Callable[..., Any]) -> None:
    given = settings("run")
    messages: list[str] = []
    record = run(given, messages.append, _At(3, _spoil))
    assert record.skipped_steps == 1 and "1 steps were skipped: their loss or gradient was not finite." in record.notes
    assert any("the loss of step 3 is NaN or infinite" in message for message in messages)
    assert [line["step"] for line in _lines(given.output)[1:] if line["train_loss"] is None] == [3]
    assert json.loads((given.output / "checkpoints" / "checkpoint-4" / "skipped.json").read_text())[0]["step"] == 3
    weights = load_file(given.output / "adapter" / "adapter_model.safetensors")
    assert all(weight.isfinite().all() for weight in weights.values())


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_another_class_of_model_is_a_task_of_the_job(settings: Callable[..., Any], method: str) -> None:
    given = settings("run", method=method, steps=2, **({} if method == "oft" else {"block_size": None}))
    record = run_text(given, reward_job(given), lambda _: None, bar=False)
    config = json.loads((given.output / "adapter" / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    saved = load_file(given.output / "adapter" / "adapter_model.safetensors")
    assert any("score" in name for name in saved)
    assert record.trainable_parameters == sum(value.numel() for value in saved.values())
    assert all(0 <= line["accuracy"] <= 1 for line in _lines(given.output)[1:])
    assert (record.scores_before, record.gain, record.drift) == ({}, None, None)
