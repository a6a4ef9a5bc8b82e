"""On-policy distillation: nothing to learn from an equal teacher, bit for bit; what the teacher reads; wrong input."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainingArguments

from orthotune import OFTConfig
from orthotune.errors import OrthotuneError
from orthotune.recipes import distill
from orthotune.recipes.load import load_settings
from orthotune.runs.checkpoint_on_signal import Stopped
from orthotune.text.arguments import run_arguments
from orthotune.text.causal_model import load_model, load_tokenizer
from orthotune.text.distill_trainer import DistillTrainer, PromptPair
from orthotune.text.divergences import DIVERGENCES
from orthotune.text.trainer import run_trainer
from tests.support.tiny_text import make_model, make_tokenizer, save_model, write_jsonl

Given = Callable[..., list[str]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Given:
    """The command line of a small run."""
    folder = tmp_path_factory.mktemp("prompts")
    rows = [
        {"prompt": f"count {place}:", "context": f"one{'!' * (place % 4)} ", "answer": place} for place in range(22)
    ]
    small = {"model": model_path, "data": write_jsonl(folder / "prompts.jsonl", rows), "steps": 4, "batch_size": 3}
    small |= {"max_completion_length": 6, "max_length": 40, "warmup": 0, "learning_rate": 1e-2, "block_size": 8}
    small |= {"old_data": folder / "old.txt", "eval_every": 2, "save_every": 2}
    (folder / "old.txt").write_text("what must not be forgotten, once more, and again")

    def words(**more: Any) -> list[str]:
        if more.get("method") == "full":
            more["block_size"] = "null"
        return [f"{key}={value}" for key, value in (small | more).items()]

    return words


def _run(words: list[str], *callbacks: TrainerCallback, say: Any = lambda _: None) -> Any:
    return distill.run(load_settings(distill.DistillSettings, None, words), say, callbacks, bar=False)


def _lines(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _weights(output: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(output / "adapter" / "adapter_model.safetensors")
    return found


ADAPTERS = {
    "oft": OFTConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    "magnitudes": OFTConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", magnitude=True),
    "lora": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
    "full": None,
}


def _trainer(model_path: Path, folder: Path, adapter: str, pairs: list[PromptPair], divergence: Any) -> Any:
    arguments = run_arguments(
        TrainingArguments, folder, schedule="constant", bf16=False, max_steps=2, learning_rate=0.1,
        per_device_train_batch_size=3, remove_unused_columns=False,
    )  # fmt: skip
    model = load_model(str(model_path), torch.float32)
    copy = load_model(str(model_path), torch.float32) if adapter == "full" else None
    return run_trainer(DistillTrainer)(
        model, args=arguments, train_dataset=pairs, processing_class=load_tokenizer(str(model_path)),
        peft_config=ADAPTERS[adapter], teacher=copy,
        divergence=divergence, max_completion_length=5,
    )  # fmt: skip


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_teacher_that_reads_the_same_leaves_the_model_as_it_is(
    model_path: Path, tmp_path: Path, adapter: str, divergence: str
) -> None:
    prompts = [[5, 6, 7], [8], [9, 10]]
    pairs = [PromptPair(student=ids, teacher=ids) for ids in prompts]
    trainer = _trainer(model_path, tmp_path, adapter, pairs, divergence)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    assert losses == [0, 0] == norms and len(before) >= 20
    # No tolerance: a gradient of rounding alone, divided by its own size, would be a complete step of Adam.
    assert all(value.equal(before[name]) for name, value in trainer.model.named_parameters())


def test_the_loss_is_the_divergence_at_the_written_tokens(model_path: Path, tmp_path: Path) -> None:
    pairs = [PromptPair(student=[5, 6, 7], teacher=[11, 12, 13, 14, 5, 6, 7]), PromptPair(student=[8], teacher=[9, 8])]
    trainer = _trainer(model_path, tmp_path, "oft", pairs, "reverse")
    inputs = trainer._prepare_inputs(pairs)
    assert [1 <= len(tokens) <= 5 for tokens in inputs["written"]] == [True, True] and trainer.model.training
    loss = trainer.compute_loss(trainer.model, inputs)
    model, found = load_model(str(model_path), torch.float32), []
    for pair, written in zip(pairs, inputs["written"], strict=True):
        one, other = (
            model(torch.tensor([prompt + written])).logits[0, len(prompt) - 1 : -1].detach().double().log_softmax(-1)
            for prompt in (pair["student"], pair["teacher"])
        )
        found.append((one.exp() * (one - other)).sum(-1))
    # float32, and a padded batch is summed in another order than its rows.
    assert loss.item() == pytest.approx(torch.cat(found).mean().item(), abs=1e-6) and loss.item() > 1e-4
    loss.backward()
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert any(parameter.grad.any() for parameter in trained)


@pytest.mark.parametrize("method", ["oft", "lora", "full"])
def test_a_run_leaves_everything_behind(given: Given, tmp_path: Path, method: str) -> None:
    messages: list[str] = []
    options = {"rotation.magnitude": "true", "reward": "{length: 6}"} if method == "oft" else {}
    record = _run(given(method=method, output=tmp_path / "run", **options), say=messages.append)
    lines = _lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(line["train_loss"] > 0 and line["gradient_norm"] > 0 for line in lines[1:])
    assert all(1 <= line["completions/mean_length"] <= 6 for line in lines[1:])
    assert [line["step"] for line in lines if "held_out_divergence" in line and "old_nats" in line] == [0, 2, 4]
    assert record.scores_before["held_out_divergence"] > 0 and record.scores_after["held_out_divergence"] > 0
    assert ("held_out_reward" in record.scores_after) == (method == "oft")
    assert record.old_before == lines[0]["old_nats"] and record.drift > 0 and record.new_before is None
    itself = "the model itself before training" if method == "full" else "the model itself, its adapter switched off"
    assert messages[0].splitlines()[1] == f"teacher: {itself}; divergence: reverse."


def test_a_run_that_was_cut_off_ends_with_the_same_bits(given: Given, tmp_path: Path) -> None:
    more = {"gradient_accumulation": 2, "divergence": "jensen-shannon"}
    _run(given(output=tmp_path / "complete", **more))

    class _Stop(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
            if state.global_step == 1:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped, match="after step 2 of 4"):
        _run(given(output=tmp_path / "cut", **more), _Stop())
    _run(given(output=tmp_path / "cut", resume="auto", **more))
    complete, cut = _weights(tmp_path / "complete"), _weights(tmp_path / "cut")
    assert complete and all(complete[name].equal(cut[name]) for name in complete)  # float32 on a CPU
    assert _lines(tmp_path / "complete") == _lines(tmp_path / "cut")


def test_another_teacher_is_learned(given: Given, tmp_path: Path) -> None:
    torch.manual_seed(1)
    teacher = make_model()
    torch.nn.init.normal_(teacher.model.embed_tokens.weight)  # tied to the head: far from the student
    teacher.save_pretrained(tmp_path / "teacher")
    make_tokenizer().save_pretrained(tmp_path / "teacher")
    rows = write_jsonl(tmp_path / "plain.jsonl", [{"prompt": f"count {place}"} for place in range(22)])
    more = {"teacher": tmp_path / "teacher", "data": rows, "divergence": "forward", "method": "full", "steps": 8}
    record = _run(given(output=tmp_path / "run", **more))
    assert record.scores_before["held_out_divergence"] > 1
    assert record.scores_after["held_out_divergence"] < record.scores_before["held_out_divergence"]
    assert record.notes[1] == f"teacher: {tmp_path / 'teacher'}; divergence: forward."


def test_what_the_teacher_reads() -> None:
    settings = distill.DistillSettings(context="Be short. ")
    asked = [{"role": "user", "content": "Why?"}]
    ruled = [{"role": "system", "content": "You are kind."}, *asked]

    def prompt(row: dict[str, Any], given: Any = settings) -> Any:
        return distill._teacher_prompt(row, given, "row 1")

    assert prompt({"prompt": "Why?"}) == "Be short. Why?"
    assert prompt({"prompt": "Why?", "context": "As he said: "}) == "Be short. As he said: Why?"
    assert prompt({"prompt": "Why?", "teacher_prompt": "Why, shortly?"}) == "Why, shortly?"
    assert prompt({"prompt": asked}) == [{"role": "system", "content": "Be short. "}, *asked]
    shown = prompt({"prompt": ruled, "context": "Answer: no."})
    assert shown == [{"role": "system", "content": "You are kind.\n\nBe short. \n\nAnswer: no."}, *asked]
    assert ruled[0]["content"] == "You are kind."
    other = distill.DistillSettings(teacher="models/large")
    assert prompt({"prompt": asked}, other) == asked and prompt({"prompt": "a"}, other) == "a"


#: What is written, and the words of the answer.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"divergence": "kl"}, "divergence='kl'. Needed: 'forward', 'reverse' or 'jensen-shannon'"),
    ({"divergense": "forward"}, "unknown key 'divergense'. Did you mean 'divergence'"),
    ({"context_column": "hint"}, "Needed: column 'hint' or 'teacher_prompt'. Add one of them, or write context="),
    ({"context_column": "answer"}, "column 'answer'. Found: int '0'. Needed: a text"),
    ({"teacher_prompt_column": "answer"}, "column 'answer'. Found: int '0'. Needed: a prompt of the same kind"),
    ({"teacher": "{folder}/others"}, "teacher=.*others. Found: a tokenizer with another vocabulary"),
    ({"teacher": "{folder}/nowhere"}, "model=.*nowhere"),
    ({"teacher": "{folder}/wide"}, "teacher=.*wide. Found: 264 logits, where the model has 258"),
    ({"reward": "exat"}, "Did you mean 'exact'"),
    ({"max_completion_length": 40}, "leaves no room for a prompt in max_length=40"),
    ({"max_completion_length": 27}, "of 21 prompts with more than 13 tokens"),
    ({"lora.bias": "all", "method": "lora"}, "the teacher is the base, of which lora.bias=all trains a part"),
    ({"distributed": "zero2"}, "a complete model in each process"),
    ({"num_generations": 4}, "unknown key 'num_generations'"),
    ({"max_steps": 4}, "max_steps is decided by the run. Write steps"),
    ({"result": "best"}, "result needs a loss on known answers"),
]


@pytest.mark.parametrize(
    ("more", "words"), WRONG, ids=[f"{place}-{next(iter(one[0]))}" for place, one in enumerate(WRONG)]
)
def test_wrong_input_is_an_error_in_words(given: Given, tmp_path: Path, more: dict[str, Any], words: str) -> None:
    if "teacher" in more:
        save_model(tmp_path / "wide", "float32")
        make_model(264).save_pretrained(tmp_path / "wide")
        save_model(tmp_path / "others", "float32")
        tokenizer = make_tokenizer()
        tokenizer.add_tokens(["<more>"])
        tokenizer.save_pretrained(tmp_path / "others")
        more = {"teacher": more["teacher"].replace("{folder}", str(tmp_path))}
    with pytest.raises(OrthotuneError, match=words):
        _run(given(output=tmp_path / "run", **more))
    assert not (tmp_path / "run" / "run.json").exists()
