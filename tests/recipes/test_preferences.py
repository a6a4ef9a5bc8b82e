"""The recipes on preferences: exact starts, the reference, equal bits after a resume, what is measured and refused."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from orthotune import PeftModel
from orthotune.errors import DataError, OrthotuneError, RecipeError
from orthotune.recipes import held_out, magnitude, preference_job
from orthotune.recipes.load import load_settings
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.reward import load_reward_model
from orthotune.recipes.text_job import TrainerInputs, adapter_config
from orthotune.runs.checkpoint_on_signal import Stopped
from orthotune.runs.record import RunRecord
from orthotune.text.causal_model import load_model
from orthotune.text.preference_scores import ImplicitRewards, rewards_of
from orthotune.text.trainer import TrainerParts
from tests.support.tiny_text import CHAT, make_tokenizer, save_model, texts, write_jsonl

NAMES = ("dpo", "kto", "orpo", "reward")
PREDICTING = ("dpo", "kto", "orpo")
REFERENCED = ("dpo", "kto")
PAIRS = [{"prompt": f"count {n}: ", "chosen": "up " * (1 + n % 3), "rejected": "down"} for n in range(12)]
#: The score of held-out examples by which a run is judged, a share that is one half for a guess.
SCORE = {"dpo": "pair_accuracy", "kto": "auc", "orpo": "pair_accuracy", "reward": "pair_accuracy"}
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preferences")
    write_jsonl(folder / "pairs.jsonl", PAIRS)
    write_jsonl(folder / "held-out.jsonl", [row | {"prompt": f"again {n}: "} for n, row in enumerate(PAIRS[:5])])
    write_jsonl(folder / "old.jsonl", texts(8, "old"))
    return folder


@pytest.fixture(scope="module")
def make(files: Path, model_path: Path) -> Make:
    def settings(name: str, folder: str = "run", **more: Any) -> Any:
        given = {"model": str(model_path), "data": str(files / "pairs.jsonl"), "steps": 4, "batch_size": 3}
        given |= {"eval_data": str(files / "held-out.jsonl"), "max_length": 32, "learning_rate": 1e-2, "warmup": 0}
        given |= {"save_every": 2, "dtype": "float32", "output": files / name / folder, "block_size": 8}
        given |= {"rotation": {"magnitude": True}} if more.get("method", "oft") == "oft" else {"block_size": None}
        given |= {"old_data": str(files / "old.jsonl")} if name in PREDICTING else {}
        return RECIPES[name].settings_class()(**(given | more))

    return settings


def _run(settings: Any, *callbacks: TrainerCallback, say: Any = lambda _: None) -> RunRecord:
    record: RunRecord = RECIPES[settings.recipe].job().run(settings, say, callbacks, bar=False)
    return record


@pytest.fixture(scope="module")
def finished(make: Make) -> dict[str, tuple[Any, RunRecord, list[str]]]:
    """One run of each recipe with rotations and magnitudes: settings, record and messages."""
    found = {}
    for name in NAMES:
        settings, messages = make(name), []
        found[name] = (settings, _run(settings, say=messages.append), messages)
    return found


def _lines(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def _made(settings: Any) -> tuple[Any, Any]:
    """The trainer of a run as it begins, and its data."""
    job = preference_job.preference_job(settings, RECIPES[settings.recipe].job().RECIPE)
    data, model, notes = job.data(), job.model(torch.float32), []
    adapter = adapter_config(settings, model, notes, job.task)
    checkpoints = settings.output / "checkpoints"
    trainer: Any = job.trainer(
        TrainerInputs(model, job.tokenizer(), adapter, data, checkpoints, torch.float32, TrainerParts(), notes)
    )
    return trainer, data


@pytest.mark.parametrize("name", NAMES)
def test_a_run_measures_and_records(name: str, finished: Any) -> None:
    settings, record, messages = finished[name]
    assert (record.recipe, record.method, record.steps) == (name, "oft", 4)
    score = SCORE[name]
    assert record.scores_after[score] >= record.scores_before[score]
    if name in REFERENCED:  # nothing is trained yet: each reward is exactly 0, and each pair a tie
        assert record.scores_before[score] == 0.5 and record.scores_before["reward_margin"] == 0.0
        assert record.scores_after[score] > 0.5 and record.scores_after["reward_margin"] > 0
    predicts = name in PREDICTING
    assert (record.gain is not None) == (record.forgetting is not None) == (record.drift is not None) == predicts
    lines = _lines(settings.output)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert all(score in line for line in lines) and ("forgetting" in lines[-1]) == predicts
    counts = record.data["train"]
    assert counts["examples"] == len(PAIRS) * (2 if name == "kto" else 1) and counts["trained_tokens"] > 0
    assert any(f"data: {counts['examples']} examples" in message for message in messages)
    assert record.settings["trainer"] == {} and (settings.output / "curve.png").is_file()
    saved = load_file(settings.output / "adapter" / "adapter_model.safetensors")
    assert any("score" in key for key in saved) == (name == "reward")
    assert not any(".ref" in key for key in saved)


@pytest.mark.parametrize("method", ["oft", "lora", "full"])
@pytest.mark.parametrize("name", REFERENCED)
def test_the_first_loss_is_exact_and_the_reference_is_the_base(name: str, method: str, make: Make) -> None:
    settings = make(name, method=method)
    trainer, data = _made(settings)
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, dict(batch)).item()
    # No rounding is to be allowed for: both models compute the same numbers, and differences of equal numbers are 0.
    expected = torch.nn.functional.softplus(torch.zeros(())).item() if name == "dpo" else 0.5
    assert loss == expected and abs(expected - (math.log(2) if name == "dpo" else 0.5)) < 1e-7  # float32
    metrics = trainer._metrics["train"]
    assert {*metrics["rewards/chosen"], *metrics["rewards/rejected"], *metrics.get("kl", [])} == {0.0}
    with torch.no_grad():  # whatever is trained, magnitudes too, the reference stays
        for index, parameter in enumerate(one for one in trainer.model.parameters() if one.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)) / 10)
    base = load_model(settings.model, torch.float32)
    before = ImplicitRewards(data.held_out, 32, 1.0, base)
    before(base)
    own = ImplicitRewards(data.held_out, 32, 0.1, trainer.ref_model)
    rewards, _ = own(trainer.model)
    assert own.before == before.before and max(map(abs, rewards)) > 1e-3
    assert (trainer.ref_model is None) == (method != "full")  # no second model beside an adapter
    # TRL's head computes in pieces: about 20 tokens of some nats, each rounded to float32.
    logps = trainer.compute_ref_log_probs(trainer.ref_model or trainer.model, batch)
    again = torch.cat([one for one in logps if one is not None])[: len(batch["input_ids"])]
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)[:, 1:]
    logits = base(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    assert torch.allclose(again, -nats.sum(1), atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_cut_ends_with_the_same_bits(name: str, make: Make, finished: Any) -> None:
    class Cut(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
            if state.global_step == 1:
                signal.raise_signal(signal.SIGTERM)

    complete = finished[name][0]
    with pytest.raises(Stopped, match="after step 2 of 4, which checkpoint-2 holds"):
        _run(make(name, "cut"), Cut())
    _run(make(name, "cut", resume="auto"))
    files = [settings.output / "adapter" / "adapter_model.safetensors" for settings in (complete, make(name, "cut"))]
    expected, found = map(load_file, files)
    # float32 on a CPU: resuming restores parameters, optimizer, schedule, order of data and random state exactly.
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    assert _lines(complete.output) == _lines(make(name, "cut").output)


def _talk(number: int) -> dict[str, Any]:
    answers = {"chosen": [{"role": "assistant", "content": "2"}], "rejected": [{"role": "assistant", "content": "no"}]}
    tools = {"tools": [{"name": "a"}]} if number % 2 else {}
    return {"prompt": [{"role": "user", "content": str(number)}], **answers, **tools}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["dialogues", "texts"])
def test_the_trainer_learns_the_tokens_that_were_counted(name: str, kind: str, make: Make, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT
    tokenizer.save_pretrained(folder)
    data = _write(tmp_path, [_talk(number) for number in range(6)] if kind == "dialogues" else PAIRS)
    trainer, found = _made(make(name, "talk", model=str(folder), data=data, eval_data=data, max_length=60))
    learned = list(trainer.train_dataset)
    assert len(learned) == len(found.rows) > 0
    for row, own in zip(learned, found.rows, strict=True):
        entire, end = [own.prompt + answer for answer in own.answers], [tokenizer.eos_token_id]
        if name in REFERENCED:
            answers = ("completion_ids",) if name == "kto" else ("chosen_ids", "rejected_ids")
            assert entire == [row["prompt_ids"] + row[answer] for answer in answers]
            assert row.get("label") == own.label
        else:
            answers = ("chosen_ids", "rejected_ids") if name == "reward" else ("chosen_input_ids", "rejected_input_ids")
            # ORPO's trainer closes a dialogue with the end token once more, after what the chat template wrote.
            closing = end if name == "orpo" and kind == "dialogues" else []
            assert [one + closing for one in entire] == [row[answer] for answer in answers]
    if kind == "dialogues":
        assert any("name" in tokenizer.decode(own.prompt) for own in found.rows)


@pytest.mark.parametrize(("name", "method"), [("orpo", "full"), ("orpo", "lora"), ("reward", "lora"), ("dpo", "full")])
def test_other_methods_train(name: str, method: str, make: Make) -> None:
    record = _run(make(name, method, method=method, steps=2, learning_rate=1e-3))
    assert record.method == method and record.scores_after[SCORE[name]] >= record.scores_before[SCORE[name]]
    assert any("a second copy of the model" in note for note in record.notes) == (method == "full" and name == "dpo")


def test_the_head_of_a_reward_model_is_saved_and_loaded(finished: Any) -> None:
    settings, record, _ = finished["reward"]
    data = preference_job.load(settings)
    rows = [row for one in data.held_out for row in one.rows(settings.max_length)]
    fresh = load_reward_model(settings, torch.float32)
    fresh.config.pad_token_id = data.tokenizer.pad_token_id
    loaded = PeftModel.from_pretrained(fresh, str(settings.output / "adapter")).eval()
    rewards = rewards_of(loaded, rows, data.tokenizer.pad_token_id)
    margin = sum(rewards[::2]) / len(rewards[::2]) - sum(rewards[1::2]) / len(rewards[1::2])
    assert margin == pytest.approx(record.scores_after["reward_margin"], abs=1e-5)  # float32 sums in another order
    assert abs(margin - record.scores_before["reward_margin"]) > 1e-3


def test_fields_of_trl_reach_the_trainer_and_the_record(make: Make) -> None:
    settings = make("dpo", "ipo", loss_type="ipo", beta=0.5, adam_beta2=0.9)
    trainer, _ = _made(settings)
    assert (trainer.beta, trainer.loss_types, trainer.args.adam_beta2) == (0.5, ["ipo"], 0.9)
    assert settings.record()["trainer"] == {"loss_type": ["ipo"], "beta": 0.5, "adam_beta2": 0.9}
    with pytest.raises(RecipeError, match=r"DPOConfig \(loss_type=\['exo_pair'\]\).*Label smoothing must be greater"):
        _made(make("dpo", "exo", loss_type="exo_pair"))


def test_rules_the_best_result_and_rewinding(make: Make) -> None:
    settings = make("dpo", "rewound", rewind="auto", result="best", stop_when={"patience": 50}, eval_every=2)
    record = _run(settings)
    assert record.result_step in (0, 2, 4) and record.rewound is not None and record.rewound["by"] == "one"
    assert (settings.output / "rewound" / "rewind.json").is_file()
    again = held_out.settings_of_run(settings.output)
    assert again.recipe == "dpo" and again.trainer == {} and again.data == settings.data


def test_magnitudes_of_a_run_are_fitted_against_the_same_reference(finished: Any, tmp_path: Path) -> None:
    settings, record, _ = finished["dpo"]
    given = [f"adapter={settings.output}", f"output={tmp_path / 'fit'}", "steps=2"]
    fit = magnitude.run(magnitude.load_magnitude(None, given), say=lambda _: None, bar=False)
    # The adapter is on when the fit begins, and its rewards are counted from the base.
    assert fit.scores_before["reward_margin"] == pytest.approx(record.scores_after["reward_margin"], abs=1e-5)
    assert [path.name for path in (tmp_path / "fit" / "adapter").iterdir() if path.is_dir()] == []


def _write(folder: Path, rows: list[dict[str, Any]]) -> str:
    return str(write_jsonl(folder / "data.jsonl", rows))


LONG = [row | {"prompt": "a" * 40} for row in PAIRS]
TALK = [{"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Yes", "rejected": "No"}]


#: name, settings, and the words of the refusal.
def test_the_reference_of_a_continued_adapter_is_the_base_and_the_run_says_so(
    make: Make, finished: dict[str, tuple[Any, RunRecord, list[str]]]
) -> None:
    adapter = str(finished["orpo"][0].output / "adapter")
    given = {"adapter": adapter, "block_size": None, "steps": 1}
    said: list[str] = []
    _run(make("dpo", "continued", **given), say=said.append)
    assert "reference: the base with every adapter off, not the adapter that is continued" in "\n".join(said)
    with pytest.raises(RecipeError, match="precompute_ref_log_probs.*an adapter that is trained further"):
        _run(make("dpo", "computed", **given, precompute_ref_log_probs=True))


@pytest.mark.parametrize("name", REFERENCED)
def test_trained_biases_are_refused_where_the_base_is_the_reference(make: Make, name: str) -> None:
    with pytest.raises(RecipeError, match="bias=all of the adapter.*which stay when the adapter is off"):
        _run(make(name, "bias", method="lora", lora={"bias": "all"}))


WRONG: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"rows": [{"prompt": "a", "chosen": "b"}]}, "line 1: no ") for name in NAMES),
    *((name, {"rows": LONG}, "12 of 12 examples with nothing to learn in 32 tokens") for name in ("dpo", "orpo")),
    ("kto", {"rows": LONG}, "24 of 24 examples with nothing to learn in 32 tokens"),
    ("reward", {"rows": LONG, "max_dropped": 1}, "Needed: an example to learn from. Pass a larger max_length"),
    *((name, {"rows": TALK}, "a tokenizer without a chat template") for name in NAMES),
    *((name, {"rows": [row | {"rejected": row["chosen"]} for row in PAIRS]}, "12 whose answers are the same")
      for name in NAMES),
    *((name, {"rows": [row | {"chosen": " "} for row in PAIRS]}, "12 with an empty prompt or answer")
      for name in NAMES),
    *((name, {"data": "no-such.jsonl"}, "no such file") for name in NAMES),
    *((name, {"data": "text-world/new_trian"}, "one of new_train, new_validation, new_test") for name in NAMES),
    *((name, {"old_data": "{pairs}"}, "columns chosen, prompt, rejected") for name in PREDICTING),
    *((name, {"eval_data": None, "result": "best", "old_data": None}, "result=best. Found: no held-out preferences")
      for name in PREDICTING),
    *((name, {"eval_data": None, "rewind": "auto", "old_data": None}, "held-out texts of the target domain")
      for name in PREDICTING),
    ("kto", {"rows": [{"prompt": "a", "completion": "b", "label": "good"}]}, "true (wanted) or false (not wanted)"),
    ("kto", {"rows": [{"prompt": "a", "completion": "b", "label": True}] * 4}, "true in all 4 rows"),
    ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "loss_weights` must have the same length"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_data_is_refused_before_a_model_is_loaded(
    name: str,
    given: dict[str, Any],
    words: str,
    make: Make,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preference_job, "_model", lambda *_: pytest.fail("the model was loaded"))
    rows = given.get("rows")
    more = {key: value for key, value in given.items() if key != "rows"}
    more |= {"data": _write(tmp_path, rows)} if rows else {}
    if more.get("old_data"):
        more["old_data"] = str(files / "pairs.jsonl")
    with pytest.raises((DataError, RecipeError)) as found:
        _run(make(name, "wrong", output=tmp_path / "out", **more))
    assert words in str(found.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("dpo", "betta=1", "Did you mean 'beta'?"),
        ("dpo", "beta=strong", "beta='strong' is no value of DPOConfig.beta"),
        ("dpo", "data_format=messages", "unknown key 'data_format'"),
        ("dpo", "sync_ref_model=true", "sync_ref_model is decided by the run: the reference is the model before"),
        ("dpo", "old_data=none rewind=auto", "rewind needs texts of the source domain, and old_data=none"),
        ("dpo", "old_data=none stop_when.forgetting=0.1", "stop_when.forgetting needs texts of the source domain"),
        ("dpo", "label_smoothing=[1]", "label_smoothing=[1] is no value of DPOConfig.label_smoothing"),
        ("kto", "desirable_wieght=1", "Did you mean 'desirable_weight'?"),
        ("kto", "loss_type=kyo", "has no value 'kyo'. Did you mean 'kto'?"),
        ("kto", "batch_size=1", "batch_size=1 leaves nothing to estimate the KL term from"),
        ("kto", "max_steps=5", "max_steps is decided by the run. Write steps."),
        ("orpo", "max_completion_len=5", "Did you mean 'max_completion_length'?"),
        ("orpo", "beta=[]", "beta=[] is no value of ORPOConfig.beta"),
        ("orpo", "max_dropped=2", "max_dropped=2. Needed: less than or equal to 1"),
        ("reward", "center_reward_coefficient=1", "Did you mean 'center_rewards_coefficient'?"),
        ("reward", "center_rewards_coefficient=x", "is no value of RewardConfig.center_rewards_coefficient"),
        ("reward", "old_data=old.jsonl", "old_data is about losses of tokens, which a reward model does not predict"),
        ("reward", "rewind=auto", "rewind is about losses of tokens"),
        ("reward", "result=best", "result is about losses of tokens"),
        ("reward", "stop_when.gain=1", "stop_when is about losses of tokens"),
    ],
)
def test_wrong_settings_are_refused(name: str, given: str, words: str) -> None:
    with pytest.raises(OrthotuneError) as found:
        load_settings(RECIPES[name].settings_class(), None, given.split())
    assert words in str(found.value)


@pytest.mark.parametrize("name", NAMES)
def test_without_arguments_it_is_the_small_model_on_its_own_preferences(name: str) -> None:
    settings: Any = load_settings(RECIPES[name].settings_class(), None, [])
    assert settings.model == "text-world" and settings.data == "text-world/new_train" and settings.steps
    found = preference_job.load(settings)
    assert len(found.rows) > 400 and len(found.held_out) > 50
    assert found.counts["train"].lost < 0.05 and set(found.domains) == ({"new", "old"} if name in PREDICTING else set())
