"""What every run adds to a trainer works with each class of transformers and TRL, whatever its loss is made from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from transformers import LlamaForSequenceClassification, Trainer, TrainerCallback, TrainingArguments
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import TrainingError
from orthotune.runs.checkpoint_manifest import check
from orthotune.runs.learning_rates import RateFactors
from orthotune.runs.quiet import quiet
from orthotune.text.added_losses import LossMaker
from orthotune.text.arguments import run_arguments
from orthotune.text.sft_trainer import sft_config
from orthotune.text.trainer import RunTrainer, TrainerParts, run_trainer
from tests.support.tiny_text import make_model, make_tokenizer

COUNT = 16
PAIRS = [{"prompt": f"count {n}: ", "chosen": "up " * (1 + n % 3), "rejected": "down"} for n in range(COUNT)]
ANSWERS = [{"prompt": row["prompt"], "completion": row["chosen"], "label": n % 2 == 0} for n, row in enumerate(PAIRS)]
PROMPTS = [{"prompt": row["prompt"]} for row in PAIRS]
TOKENS = [{"input_ids": [5 + n, 6, 7 + n], "labels": n % 2} for n in range(COUNT)]


def _adapter(task: str = "CAUSAL_LM") -> OFTConfig:
    return OFTConfig(oft_block_size=8, target_modules=["q_proj", "up_proj"], task_type=task)


def _scorer(labels: int) -> Any:
    model = make_model()
    torch.manual_seed(0)
    config = model.config
    config.num_labels = labels
    return LlamaForSequenceClassification(config)


def _reward(completions: list[str], **_: Any) -> list[float]:
    return [float(len(set(text))) for text in completions]


def _plain(**given: Any) -> Any:
    model = get_peft_model(_scorer(2), _adapter("SEQ_CLS"))
    return run_trainer(Trainer)(model, train_dataset=Dataset.from_list(TOKENS), **given)


def _on_trl(
    base: type[Any], rows: list[dict[str, Any]], load: Callable[[], Any] = make_model, **options: Any
) -> Callable[..., Any]:
    def make(**given: Any) -> Any:
        adapter = _adapter("CAUSAL_LM" if load is make_model else "SEQ_CLS")
        data = {"train_dataset": Dataset.from_list(rows), "processing_class": make_tokenizer()}
        return run_trainer(base)(load(), peft_config=adapter, **data, **options, **given)

    return make


def _arguments(kind: type[Any], **more: Any) -> Callable[..., Any]:
    return lambda folder, **options: run_arguments(kind, folder, schedule="constant", bf16=False, **(more | options))


# Generated once for all four steps, which take the completions from the buffer of the trainer.
GENERATED = {"num_generations": 2, "max_completion_length": 6, "steps_per_generation": 8}
TRAINERS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "plain": (_plain, _arguments(TrainingArguments)),
    "sft": (
        _on_trl(trl.SFTTrainer, [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS]),
        lambda folder, **options: sft_config(
            folder, packing="none", data_format="prompt-completion", schedule="constant", bf16=False, **options
        ),
    ),
    "dpo": (_on_trl(trl.DPOTrainer, PAIRS), _arguments(trl.DPOConfig)),
    "kto": (_on_trl(trl.KTOTrainer, ANSWERS), _arguments(trl.KTOConfig)),
    "orpo": (_on_trl(ORPOTrainer, PAIRS), _arguments(ORPOConfig, max_length=32)),
    "reward": (_on_trl(trl.RewardTrainer, PAIRS, lambda: _scorer(1)), _arguments(trl.RewardConfig)),
    "grpo": (_on_trl(trl.GRPOTrainer, PROMPTS, reward_funcs=_reward), _arguments(trl.GRPOConfig, **GENERATED)),
    "rloo": (_on_trl(trl.RLOOTrainer, PROMPTS, reward_funcs=_reward), _arguments(trl.RLOOConfig, **GENERATED)),
}


def _trainer(
    name: str, folder: Path, *callbacks: TrainerCallback, parts: TrainerParts | None = None, **options: Any
) -> Any:
    make, arguments = TRAINERS[name]
    said = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    said |= {"learning_rate": 1e-2, "gradient_checkpointing": False} | options
    with quiet():
        return make(args=arguments(folder, **said), callbacks=list(callbacks), parts=parts)


def _train(trainer: Any, checkpoint: Path | None = None) -> list[torch.Tensor]:
    with quiet():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return _trained(trainer.model)


def _trained(model: Any) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters() if parameter.requires_grad]


class _Broken(TrainerCallback):
    """NaN out of a layer whenever ``step`` is trained, and the parameters after every step."""

    def __init__(self, step: int) -> None:
        self.step, self.after = step, dict[int, list[torch.Tensor]]()

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step + 1 == self.step:
            layer = next(m for n, m in seen["model"].named_modules() if n.endswith("layers.1.mlp.up_proj"))
            self.hook = layer.register_forward_hook(lambda module, _, output: output * float("nan"))

    def on_step_end(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step == self.step:
            self.hook.remove()
        self.after[state.global_step] = _trained(seen["model"])


def _equal(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_that_is_not_finite_is_skipped_named_and_counted(name: str, tmp_path: Path) -> None:
    messages: list[str] = []
    broken = _Broken(3)
    trainer = _trainer(name, tmp_path, broken, parts=TrainerParts(say=messages.append))
    _train(trainer)
    assert isinstance(trainer, RunTrainer) and trainer.state.global_step == 4
    assert [(one["step"], one["kind"]) for one in trainer.skipped] == [(3, "loss")]
    assert trainer.skipped[0]["layer"].endswith("layers.1.mlp.up_proj")
    assert len(messages) == 1 and "the loss of step 3 is NaN or infinite, first in layer" in messages[0]
    assert _equal(broken.after[2], broken.after[3]) and all(p.isfinite().all() for p in broken.after[4])
    logged = {line["step"]: line for line in trainer.state.log_history if "loss" in line}
    assert logged[3]["loss"] is None and logged[3]["grad_norm"] is None and logged[4]["loss"] is not None


@pytest.mark.parametrize("name", TRAINERS)
def test_too_many_such_steps_end_the_training(name: str, tmp_path: Path) -> None:
    trainer = _trainer(name, tmp_path, _Broken(3), parts=TrainerParts(max_skipped=0))
    with pytest.raises(TrainingError, match="loss of step 3.*max_skipped is 0.*checkpoint-2 is kept"):
        _train(trainer)
    assert check(tmp_path / "checkpoint-2") == 2


@pytest.mark.parametrize("name", TRAINERS)
def test_a_resumed_training_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    # Each step generates its own texts: a checkpoint of TRL's holds no buffer of them.
    options = {"steps_per_generation": 2} if name in ("grpo", "rloo") else {}
    expected = _train(_trainer(name, tmp_path / "complete", **options))
    start = _trained(_trainer(name, tmp_path / "untrained", **options).model)
    resumed = _train(_trainer(name, tmp_path / "resumed", **options), tmp_path / "complete" / "checkpoint-2")
    assert expected and _equal(expected, resumed) and not _equal(expected, start)
    assert check(tmp_path / "complete" / "checkpoint-2") == 2
    assert not (tmp_path / "complete" / "checkpoint-2" / "training_args.bin").exists()
    # Of the last checkpoint nothing is trained further.
    again = _trainer(name, tmp_path / "again", **options)
    assert _equal(_train(again, tmp_path / "complete" / "checkpoint-4"), expected)


class _Gradients(TrainerCallback):
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        self.found = [p.grad.clone() for p in seen["model"].parameters() if p.grad is not None]


def _sum_of_parameters(trainer: Any) -> Any:
    def loss(trainer: Any, model: Any, batch: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total = sum(p.sum() for p in model.parameters() if p.requires_grad)
        return 3 * total, {"batch": torch.tensor(float(batch))}

    return loss


@pytest.mark.parametrize("name", TRAINERS)
def test_what_is_added_counts_once_in_a_step_of_two_batches(name: str, tmp_path: Path) -> None:
    found = []
    losses: tuple[LossMaker, ...] = (_sum_of_parameters,)
    for added in ((), losses):
        gradients = _Gradients()
        options = {"max_steps": 1, "max_grad_norm": 0.0}
        trainer = _trainer(name, tmp_path, gradients, parts=TrainerParts(losses=added), **options)
        _train(trainer)
        found.append(gradients.found)
    line = next(line for line in trainer.state.log_history if "loss" in line)
    assert line["batch"] == 0.5  # the mean of 0 and 1
    for without, with_it in zip(*found, strict=True):
        # Three, and neither six nor one and a half; float32.
        torch.testing.assert_close(with_it - without, torch.full_like(without, 3.0), rtol=0, atol=1e-5)


def test_checkpoints_over_a_run_are_counted_where_asked_for(tmp_path: Path) -> None:
    options = {"max_steps": -1, "num_train_epochs": 1.5, "save_steps": 500}
    # Sixteen examples, two a batch, two batches a step: four steps an epoch.
    trainer = _trainer("plain", tmp_path, parts=TrainerParts(saves=3), **options)
    assert (trainer.planned_steps, trainer.args.save_steps) == (6, 2)
    assert _trainer("plain", tmp_path, **options).args.save_steps == 500


def test_magnitudes_get_their_rate_whatever_the_trainer_is(tmp_path: Path) -> None:
    model = get_peft_model(_scorer(2), OFTConfig(oft_block_size=8, target_modules=["q_proj"], magnitude=True))
    arguments = _arguments(TrainingArguments)(tmp_path, learning_rate=1e-3)
    made = run_trainer(Trainer)(model, args=arguments, parts=TrainerParts(rate_factors=RateFactors(5.0)))
    assert sorted({group["lr"] for group in made.create_optimizer().param_groups}) == [1e-3, 5e-3]


def test_the_classes_are_made_once() -> None:
    made = run_trainer(trl.DPOTrainer)
    assert made is run_trainer(trl.DPOTrainer) and run_trainer(made) is made
    assert made.__mro__[:3] == (made, RunTrainer, trl.DPOTrainer)


def test_a_second_look_at_a_loss_leaves_what_is_logged(tmp_path: Path) -> None:
    trainer = _trainer("dpo", tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model.train(), dict(batch))
    before = copy.deepcopy(trainer._metrics)
    assert before["train"] and trainer.loss_again(trainer.model, batch).isfinite()
    assert trainer._metrics == before


def test_nothing_is_reported_to_anybody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda topic, **_: sent.append(topic), raising=False)
    _trainer("dpo", tmp_path)
    assert sent == []
