"""GRPO and RLOO from settings: what a run leaves behind, where it begins, how it goes on, and wrong input in words."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from orthotune.errors import DataError, OrthotuneError, RecipeError
from orthotune.recipes.load import load_settings
from orthotune.recipes.registry import RECIPES
from orthotune.runs.checkpoint_manifest import check
from orthotune.runs.checkpoint_on_signal import Stopped
from tests.support.tiny_text import write_jsonl

REWARDS = '''
def even(completion_ids, level, **columns):
    """The share of even tokens, which differs between the answers of a random model."""
    return [sum(not token % 2 for token in ids) / len(ids) for ids in completion_ids]

def nothing(completions, **columns):
    return [0.0] * len(completions)

def not_a_number(completions, **columns):
    return [float("nan")] * len(completions)
'''
Given = Callable[..., list[str]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> Given:
    """The command line of a small run."""
    folder = tmp_path_factory.mktemp("prompts")
    (folder / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": f"count {place}:", "answer": place, "level": [place % 3]} for place in range(22)]
    data = write_jsonl(folder / "prompts.jsonl", rows)
    small = {"model": model_path, "data": data, "reward": f"{folder}/rewards.py:even", "steps": 4, "batch_size": 4}
    small |= {"num_generations": 2, "max_completion_length": 6, "max_length": 32, "warmup": 0, "learning_rate": 1e-2}
    small |= {"block_size": 8, "old_data": data.with_name("old.txt"), "eval_every": 2, "save_every": 2}
    (folder / "old.txt").write_text("what must not be forgotten, once more, and again")

    def words(**more: Any) -> list[str]:
        if more.get("method") == "full":
            more["block_size"] = "null"
        values = small | {key: str(value).replace("{folder}", str(folder)) for key, value in more.items()}
        return [f"{key}={value}" for key, value in values.items()]

    return words


def _run(recipe: str, words: list[str], *callbacks: TrainerCallback, say: Any = lambda _: None) -> Any:
    found = RECIPES[recipe]
    return found.job().run(load_settings(found.settings_class(), None, words), say, callbacks, bar=False)


def _lines(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


class _StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step + 1 == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("recipe", ["grpo", "rloo"])
@pytest.mark.parametrize("method", ["oft", "lora", "full"])
def test_a_run_begins_at_its_reference_and_leaves_everything_behind(
    given: Given, tmp_path: Path, recipe: str, method: str
) -> None:
    options = {"rotation.magnitude": "true"} if method == "oft" else {}
    messages: list[str] = []
    record = _run(recipe, given(method=method, beta=0.1, output=tmp_path / "run", **options), say=messages.append)
    lines = _lines(tmp_path / "run")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    # The reference is the model before its first step, bit for bit: adapter off, or the same weights loaded again.
    assert lines[1]["kl"] == 0 and all(line["kl"] != 0 for line in lines[2:])
    assert all(0 < line["reward"] < 1 and line["reward_std"] > 0 for line in lines[1:])
    assert [line["step"] for line in lines if "held_out_reward" in line and "old_nats" in line] == [0, 2, 4]
    assert record.scores_before.keys() == record.scores_after.keys() == {"held_out_reward"}
    assert record.old_before == lines[0]["old_nats"] and record.forgetting != 0 and record.drift > 0
    assert record.new_before is None and record.recipe == recipe and record.method == method
    assert messages[0].splitlines()[1] == "reward: even; 2 answers to each prompt."
    assert "data: 21 prompts." in messages[0] and (tmp_path / "run" / "curve.png").is_file()
    assert check(tmp_path / "run" / "checkpoints" / "checkpoint-4") == 4


@pytest.mark.parametrize(
    ("recipe", "more"),
    [
        ("grpo", {"steps_per_generation": 3, "num_iterations": 2, "beta": 0.05}),
        ("rloo", {"steps_per_generation": 3, "gradient_accumulation": 2}),
        ("grpo", {}),
    ],
)
def test_a_run_that_was_cut_off_between_two_generations_ends_with_the_same_bits(
    given: Given, tmp_path: Path, recipe: str, more: dict[str, Any]
) -> None:
    _run(recipe, given(output=tmp_path / "complete", **more))
    with pytest.raises(Stopped, match="after step 2 of 4"):
        _run(recipe, given(output=tmp_path / "cut", **more), _StopAfter(2))
    _run(recipe, given(output=tmp_path / "cut", resume="auto", **more))
    ends = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("complete", "cut")]
    assert ends[0] and ends[0].keys() == ends[1].keys()
    assert all(ends[0][name].equal(ends[1][name]) for name in ends[0])  # float32 on a CPU
    assert _lines(tmp_path / "complete") == _lines(tmp_path / "cut")


def test_rewards_that_never_differ_are_reported(given: Given, tmp_path: Path) -> None:
    messages: list[str] = []
    words = given(output=tmp_path / "run", reward="{folder}/rewards.py:nothing", steps=10, old_data="none", seed=1)
    record = _run("grpo", [*words, "eval_every=100"], say=messages.append)
    told = [message for message in messages if message.startswith("In the first 10 steps all answers to a prompt")]
    assert len(told) == 1 and "the same reward, 0 on average; the last one was '" in told[0]
    assert any(note.startswith("10 of 10 steps had equal rewards") for note in record.notes)


def test_a_reward_model_is_a_run_or_a_folder(given: Given, tmp_path: Path, model_path: Path) -> None:
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from orthotune import OFTConfig
    from orthotune.text.reward_model import model_reward

    torch.manual_seed(3)
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    base = AutoModelForSequenceClassification.from_pretrained(model_path, num_labels=1, dtype=torch.float32)
    base.config.pad_token_id = tokenizer.pad_token_id
    base.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    adapted = get_peft_model(base, OFTConfig(r=4, target_modules=["q_proj"], task_type="SEQ_CLS"))
    for name, parameter in adapted.named_parameters():
        if "oft_R" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    adapted.save_pretrained(tmp_path / "run" / "adapter")
    texts = ["count 1: one<end>", "count 2: a longer answer<end>"]
    prompts, completions = ["count 1:", "count 2:"], [" one", " a longer answer"]
    for where, model in ((tmp_path / "run", adapted), (tmp_path / "judge", base)):
        with torch.no_grad(), adapted.disable_adapter() if model is base else torch.no_grad():
            one_by_one = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
        # float32; a row of a padded batch is summed in another order than alone.
        assert model_reward(str(where))(prompts=prompts, completions=completions) == pytest.approx(one_by_one, abs=1e-5)
    record = _run("rloo", given(output=tmp_path / "rl", reward=f"{{model: {tmp_path / 'judge'}}}", steps=2))
    assert record.scores_after["held_out_reward"] != 0
    with pytest.raises(RecipeError, match="Found: a LlamaForCausalLM. Needed: a run of `orthotune train reward`"):
        model_reward(str(model_path))
    adapted.peft_config["default"].task_type = "CAUSAL_LM"
    adapted.save_pretrained(tmp_path / "language")
    with pytest.raises(RecipeError, match="Found: an adapter of task CAUSAL_LM. Needed: a run"):
        model_reward(str(tmp_path / "language"))
    with pytest.raises(RecipeError, match="reward model .*nowhere. Found: no such directory"):
        model_reward(str(tmp_path / "nowhere"))


#: What is written, and the words of the answer.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"reward": "exat"}, "reward 'exat'.*Did you mean 'exact'"),
    ({"reward": "{folder}/rewards.py:odd"}, "no 'odd' in .*rewards.py"),
    ({"reward": "{folder}/rewards.py:not_a_number"}, "reward not_a_number. Found: nan for row 0 of the batch"),
    ({"reward": "{exact: anser}"}, "Needed: column 'anser', for reward exact. Did you mean 'answer'"),
    ({"reward": "{length: -1}"}, "reward length. Found: -1"),
    ({"num_generations": 3}, "num_generations=3 does not divide the 4 answers of a step. Pass batch_size=6"),
    ({"num_generations": 1}, "num_generations=1. Needed: greater than or equal to 2"),
    ({"num_generation": 2}, "unknown key 'num_generation'. Did you mean 'num_generations'"),
    ({"reward_weights": [1]}, "reward_weights is decided by reward"),
    ({"use_vllm": True}, "use_vllm=true needs the package vllm, which is not installed"),
    ({"beta": "high"}, "beta='high' is no value of"),
    ({"max_completion_length": 32}, "leaves no room for a prompt in max_length=32"),
    ({"max_completion_length": 24}, "12 of 21 prompts with more than 8 tokens .the longest has 9.*larger max_length"),
    ({"prompt_column": "prompts"}, "Needed: column 'prompts'. Write prompt_column=prompt"),
    ({"data": "arithmetic/train", "reward": "number"}, "conversations. Found: a tokenizer without a chat template"),
    ({"data": "python-methods/tran"}, "Did you mean 'python-methods/train'"),
    ({"data": "nowhere.jsonl"}, "no such file or directory"),
    ({"result": "best"}, "result needs a loss on known answers"),
    ({"stop_when": "{gain: 1}"}, "stop_when.gain needs a loss on known answers"),
    ({"distributed": "fsdp2"}, "a complete model in each process"),
    ({"target_modules": "[lm_head]"}, "lm_head, which TRL reads without its adapter"),
    ({"batch_size": 44}, "21 prompts. Needed: at least 22"),
    ({"temperature": 0}, "temperature=0. Needed: greater than 0"),
    ({"sync_ref_model": True}, "sync_ref_model is decided by the run"),
]


@pytest.mark.parametrize(("more", "words"), WRONG, ids=[next(iter(more)) for more, _ in WRONG])
def test_wrong_input_is_an_error_in_words(given: Given, tmp_path: Path, more: dict[str, Any], words: str) -> None:
    recipe = "rloo" if "reward_weights" in more else "grpo"
    with pytest.raises(OrthotuneError, match=words):
        _run(recipe, given(output=tmp_path / "run", **more))
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "adapter").exists()


def test_a_run_without_a_reward_says_which_there_are(model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="reward is missing. Needed: exact, number, {format: REGEX}"):
        _run("grpo", [f"model={model_path}", f"data={tmp_path}"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a"}, {"prompt": [{"role": "user", "content": "b"}]}], "a list of messages, where .*has a text"),
        ([{"prompt": 3}], "column 'prompt'. Found: int '3'. Needed: a text, or a list"),
        ([{"prompt": " "}, {"prompt": None}], "2 rows, all blank"),
        ([{"question": "a"}], "Write prompt_column=question"),
        (
            [{"prompt": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}],
            "a conversation that ends with a message of the assistant",
        ),
    ],
)
def test_prompts_of_another_form_are_refused(given: Given, tmp_path: Path, rows: list[Any], words: str) -> None:
    data = write_jsonl(tmp_path / "prompts.jsonl", rows)
    with pytest.raises(DataError, match=words):
        _run("grpo", given(output=tmp_path / "run", data=data, reward="{length: 5}"))


def test_magnitudes_are_fitted_by_rewards_and_the_reference_stays_the_base(given: Given, tmp_path: Path) -> None:
    from orthotune.recipes import magnitude

    _run("grpo", given(output=tmp_path / "run", steps=2))
    words = [f"adapter={tmp_path / 'run'}", f"output={tmp_path / 'fit'}", "beta=0.1", "steps=2"]
    record = magnitude.run(magnitude.load_magnitude(None, words), lambda _: None, bar=False)
    first = _lines(tmp_path / "fit")[1]
    assert first["kl"] > 0 and record.recipe == "grpo"  # the rotation is there from the first step
    assert not list((tmp_path / "fit" / "adapter").glob("ref*"))
    assert any("magnitude" in name for name in load_file(tmp_path / "fit" / "adapter" / "adapter_model.safetensors"))
