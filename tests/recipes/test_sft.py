from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from orthotune.errors import BlockSizeError, DataError, OutputError, RecipeError
from orthotune.recipes import sft
from orthotune.recipes.settings import METHODS, SFTSettings
from tests.support.tiny_text import save_model, write_jsonl


@pytest.fixture
def job(model_path: Path, text_path: Path, old_path: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_path),
        "data": str(text_path),
        "old_data": str(old_path),
        "steps": 6,
        "batch_size": 2,
        "max_length": 32,
        "learning_rate": 1e-2,
        "output": tmp_path / "run",
    }


def _run(job: dict[str, Any], *callbacks: TrainerCallback, **changes: Any) -> Any:
    return sft.run(SFTSettings(**(job | changes)), say=lambda _: None, callbacks=callbacks, bar=False)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    kept = run / "adapter" / "adapter_model.safetensors"
    return load_file(kept if kept.is_file() else run / "model" / "model.safetensors")


class _Stop(TrainerCallback):
    """Cuts a run off in the middle of a step, after others have passed since the last checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_run_ends_with_the_same_parameters(job: dict[str, Any], method: str, tmp_path: Path) -> None:
    job |= {"method": method, "save_every": 2, "eval_every": 2} | ({"eps": 0.5} if method == "coft" else {})
    if method in ("oft", "coft"):
        job["block_size"] = 8
    whole = _run(job, output=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(job, _Stop(5))
    assert not (tmp_path / "run" / "run.json").exists() and not (tmp_path / "run" / "adapter").exists()
    resumed = _run(job, resume="auto")

    expected, found = _weights(tmp_path / "whole"), _weights(tmp_path / "run")
    assert expected.keys() == found.keys() and expected
    # float32 on a CPU: resuming restores weights, optimizer, schedule, order of data and random state exactly.
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert (resumed.new_before, resumed.new_after) == (whole.new_before, whole.new_after)
    lines = [
        [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in text.splitlines()]
        for text in ((tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "run"))
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == list(range(7))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_leaves_everything_behind(job: dict[str, Any], method: str) -> None:
    record = _run(job, method=method, steps=12, old_data=job["old_data"])
    home = Path(job["output"])
    assert record.gain > 0.05
    assert record.gain == pytest.approx(record.new_before - record.new_after)
    assert record.forgetting == pytest.approx(record.old_after - record.old_before)
    written = json.loads((home / "run.json").read_text())
    assert written == json.loads(record.model_dump_json())
    kept = "model" if method == "full" else "adapter"
    assert (home / kept / "config.json").is_file() or (home / kept / "adapter_config.json").is_file()
    assert (home / kept / "tokenizer.json").is_file()
    assert (home / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in home.iterdir() if path.name.startswith(".")]
    lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["step"] == 0 and "train_loss" not in lines[0]
    assert [line["step"] for line in lines if "new_nats" in line] == [0, 2, 4, 6, 8, 10, 12]
    if method in ("oft", "coft"):
        # Exact rotations of float32 blocks of 32: a few roundings; the merged weight is float32 as well.
        assert record.weights.orthogonality_error < 5e-6
        assert record.weights.energy_change < 1e-5
    else:
        assert record.weights.orthogonality_error is None
        assert record.weights.energy_change > 1e-5


def test_a_saved_adapter_loads_with_the_loss_that_was_recorded(job: dict[str, Any], text_path: Path) -> None:
    from orthotune import PeftModel
    from orthotune.metrics.text_loss import nats_per_token
    from orthotune.text.causal_model import load_model, load_tokenizer
    from orthotune.text.data import hold_out, load_examples

    record = _run(job)
    base = load_model(job["model"], torch.float32)
    model = PeftModel.from_pretrained(base, str(job["output"] / "adapter"))
    held_out = hold_out(load_examples(str(text_path)))[1]
    texts = [row["text"] for row in held_out.rows]
    loss = nats_per_token(model, load_tokenizer(job["model"]), texts, job["max_length"])
    # The same float32 computation on the same rows; R is computed under no_grad here.
    assert loss.nats == pytest.approx(record.new_after, rel=1e-5)


def test_lora_is_given_as_many_parameters_as_oft(job: dict[str, Any]) -> None:
    said: list[str] = []
    record = sft.run(SFTSettings(**job, method="lora", block_size=16), say=said.append, bar=False)
    # Per layer: OFT 15/2 a feature of the input, LoRA a row for each input and each output.
    inputs, both = 6 * 32 + 48, 4 * 64 + 3 * 80
    rank = round(inputs * 7.5 / both)
    assert record.trainable_parameters == 2 * rank * both
    assert f"lora_rank={rank}: {2 * rank * both:,} parameters, nearest to OFT's {2 * int(inputs * 7.5):,}" in said[0]


@pytest.mark.parametrize("packing", ["none", "bfd_split"])
def test_dialogues_and_completions(job: dict[str, Any], tmp_path: Path, packing: str) -> None:
    model = save_model(tmp_path / "chat", chat=True)
    talk = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "blue"}]
    rows = [{"prompt": "colour? ", "completion": "blue " * (1 + index % 3)} for index in range(24)]
    data = write_jsonl(tmp_path / "pairs.jsonl", rows)
    old = write_jsonl(tmp_path / "talk.jsonl", [{"messages": talk}] * 4)
    record = _run(job, model=str(model), data=str(data), old_data=str(old), packing=packing)
    assert record.gain > 0.05 and record.forgetting is not None


def test_a_finished_run_is_kept(job: dict[str, Any]) -> None:
    record = _run(job, steps=2)
    with pytest.raises(OutputError, match="a finished run. Pass output=PATH for another one, or resume=auto"):
        _run(job, steps=2)
    assert _run(job, steps=2, resume="auto") == record
    with pytest.raises(RecipeError, match="steps=1 instead of 2.*may be raised, not lowered"):
        _run(job, steps=1, resume="auto")


def test_bad_input_is_told_before_training(job: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Needed: a directory that can be written to"):
        _run(job, output=tmp_path / "file" / "run")
    with pytest.raises(RecipeError, match="no such directory, and the hub does not give it"):
        _run(job, model=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="no such file or directory"):
        _run(job, data="./nowhere.jsonl")
    with pytest.raises(DataError, match="split 'new_tarin' of the text world"):
        _run(job, data="text-world/new_tarin")
    with pytest.raises(BlockSizeError, match="7"):
        _run(job, block_size=7)
    with pytest.raises(RecipeError, match=r"rotation.sied. Found: no such option of OFTConfig. Did you mean 'side'"):
        _run(job, rotation={"sied": "out"})
    talk = write_jsonl(tmp_path / "talk.jsonl", [{"messages": [{"role": "user", "content": "hi"}]}] * 2)
    with pytest.raises(DataError, match="a tokenizer without a chat template"):
        _run(job, data=str(talk))
    assert not Path(job["output"]).exists()


def test_rotation_options_reach_the_adapter(job: dict[str, Any]) -> None:
    record = _run(job, steps=1, rotation={"side": "out", "magnitude": True}, target_modules=["q_proj"])
    config = json.loads((job["output"] / "adapter" / "adapter_config.json").read_text())
    assert (config["side"], config["magnitude"], config["target_modules"]) == ("out", True, ["q_proj"])
    assert record.trainable_parameters == 2 * (32 * 31 // 2 + 32)


def test_settings_reach_the_trainer(job: dict[str, Any], tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "gradient_accumulation": 3,
        "gradient_checkpointing": True,
        "warmup": 4,
        "schedule": "constant",
        "weight_decay": 0.5,
        "seed": 7,
        "save_total_limit": 5,
    }
    given = sft._arguments(SFTSettings(**job, **changes), tmp_path, "text", torch.bfloat16)
    assert (given.gradient_accumulation_steps, given.gradient_checkpointing, given.warmup_steps) == (3, True, 4)
    assert (given.lr_scheduler_type, given.weight_decay, given.seed) == ("constant_with_warmup", 0.5, 7)
    assert (given.save_total_limit, given.bf16, given.max_length, given.learning_rate) == (5, True, 32, 1e-2)
    assert (given.per_device_train_batch_size, given.max_steps, given.packing_strategy) == (2, 6, "wrapped")
    by_epochs = sft._arguments(SFTSettings(**(job | {"steps": None, "epochs": 2})), tmp_path, "messages", torch.float32)
    assert (by_epochs.num_train_epochs, by_epochs.max_steps, by_epochs.packing, by_epochs.bf16) == (2, -1, False, False)


def test_a_model_in_bfloat16_is_adapted_in_float32(job: dict[str, Any], tmp_path: Path) -> None:
    half = _run(job, steps=2, dtype="bfloat16", gradient_checkpointing=True)
    whole = _run(job, steps=2, output=tmp_path / "whole")
    assert {weight.dtype for weight in _weights(tmp_path / "run").values()} == {torch.float32}
    assert half.new_before != whole.new_before
    # bfloat16 keeps three digits.
    assert half.new_after == pytest.approx(whole.new_after, rel=1e-2)
