"""Optimizers, schedules, noise, attention; what a run says of its cost; samples, the model card and what comes next."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.integrations import integration_utils

from orthotune import OFTConfig, PeftModel, get_peft_model
from orthotune.cli.report import report_on
from orthotune.recipes import sft
from orthotune.recipes.model_card import model_card
from orthotune.recipes.settings import SFTSettings
from orthotune.report.loading import loading
from orthotune.report.next_steps import next_steps
from orthotune.report.records import Records
from orthotune.runs.progress import StepBar
from orthotune.runs.record import RunRecord
from orthotune.text import trainer_options
from orthotune.text.evaluation_cost import cost_sentence
from orthotune.text.muon import muon_with_adamw


@pytest.fixture(scope="module")
def base(model_path: Path, text_path: Path, old_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_path), "data": str(text_path), "old_data": str(old_path), "batch_size": 2, "max_length": 32,
        "learning_rate": 1e-2, "warmup": 0, "block_size": 8, "eval_every": 9, "steps": 3, "sample_prompts": [],
    }  # fmt: skip


class _Look(TrainerCallback):
    """The optimizer, the rates and the noise of a run; an accident after a step."""

    def __init__(self, accident: int = -1) -> None:
        self.accident, self.rates, self.optimizer = accident, [], ""
        self.hooks = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step == self.accident:
            raise KeyboardInterrupt
        optimizer = seen["optimizer"]
        optimizer = getattr(optimizer, "optimizer", optimizer)
        self.optimizer = type(optimizer).__name__
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.attention = seen["model"].config._attn_implementation
        self.hooks = len(seen["model"].get_input_embeddings()._forward_hooks)


def _run(values: dict[str, Any], *callbacks: TrainerCallback, say: Any = lambda _: None) -> RunRecord:
    return sft.run(SFTSettings(**values), say=say, callbacks=callbacks, bar=False)


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(next(iter(sorted(run.glob("[am][do]*/*.safetensors")))))


OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"optim": "adafactor", "attention": "eager", "neftune_noise_alpha": 5.0}, "Adafactor"),
    ({"optim": "sgd", "schedule": "cosine_with_min_lr", "schedule_options": {"min_lr_rate": 0.5}}, "SGD"),
    ({"optim": "adamw_torch", "optim_options": {"beta2": 0.95}, "schedule": "inverse_sqrt"}, "AdamW"),
    ({"method": "lora", "optim": "muon", "weight_decay": 0.1}, "JoinedOptimizer"),
    ({"method": "full", "optim": "muon", "block_size": None}, "JoinedOptimizer"),
]


@pytest.mark.parametrize(("options", "kind"), OPTIONS, ids=[str(options["optim"]) for options, _ in OPTIONS])
def test_an_option_is_used_and_a_resumed_run_ends_with_the_same_bits(
    base: dict[str, Any], tmp_path: Path, options: dict[str, Any], kind: str
) -> None:
    look, values = _Look(), {**base, **options, "save_every": 1}
    record = _run({**values, "output": tmp_path / "through"}, look)
    assert look.optimizer == kind and len(look.rates) == 3
    assert {key: record.settings[key] for key in options if options[key] is not None} == {
        key: value for key, value in options.items() if value is not None
    }
    assert look.attention == options.get("attention", "sdpa")
    assert look.hooks == (1 if "neftune_noise_alpha" in options else 0)
    if "schedule_options" in options:
        # Cosine from the rate to the half of it, over 3 steps: 1, 7/8, 5/8; blocks of 8 learn at 32 / 8 times it.
        assert look.rates == pytest.approx([4e-2, 3.5e-2, 2.5e-2])
    if kind not in ("JoinedOptimizer", "Adafactor") or options.get("method") == "full":
        return  # the state of torch's own optimizers is that of every resumed run
    with pytest.raises(KeyboardInterrupt):
        _run({**values, "output": tmp_path / "cut"}, _Look(accident=2))
    _run({**values, "output": tmp_path / "cut", "resume": "auto"})
    one, other = _tensors(tmp_path / "through"), _tensors(tmp_path / "cut")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_muon_takes_the_matrices_inside_a_model(model_path: Path) -> None:
    """Its first step of a matrix has equal singular values: momentum is the gradient, orthogonalized."""
    model = AutoModelForCausalLM.from_pretrained(model_path).float()
    joined = muon_with_adamw(model, 0.1, 0.0)
    names = {id(p): name for name, p in model.named_parameters()}
    muon = {names[id(p)] for group in joined.parts[0].param_groups for p in group["params"]}
    rest = {names[id(p)] for group in joined.parts[1].param_groups for p in group["params"]}
    assert all(".layers." in name and "norm" not in name for name in muon) and not muon & rest
    assert muon | rest == set(names.values()) and "model.embed_tokens.weight" in rest
    for group in joined.param_groups:  # what a schedule does reaches both
        group["lr"] = 0.05
    weight = model.model.layers[0].self_attn.q_proj.weight
    before = weight.detach().clone()
    torch.manual_seed(0)
    weight.grad = torch.randn_like(weight) @ torch.diag(torch.linspace(0.2, 5, weight.shape[1]))
    joined.step()
    singular = torch.linalg.svdvals(before - weight.detach())
    # rate * 0.2 * sqrt(larger side); five steps of Newton-Schulz in bfloat16 bring 0.05 .. 1 to 0.5 .. 1.3
    top = 0.05 * 0.2 * max(weight.shape) ** 0.5
    assert singular.min() > 0.5 * top and singular.max() < 1.3 * top
    state = joined.state_dict()
    joined.load_state_dict(state)
    assert joined.parts[0].state is joined.state and joined.parts[1].param_groups[0] is joined.param_groups[-1]


# What a run says


def test_the_cost_of_measuring_is_stated_before_the_first_step(base: dict[str, Any], tmp_path: Path) -> None:
    shown: list[str] = []
    _run({**base, "output": tmp_path / "run", "steps": 1, "eval_tokens": 64}, say=shown.append)
    (line,) = [one for one in shown if one.startswith("evaluation:")]
    assert re.match(
        r"evaluation: \d target rows \(\d+ tokens\) and \d source rows \(\d+ tokens\) in 2 batches, 2 times;", line
    )
    assert "by the first batch" in line and cost_sentence(None, {"new": []}, 3) == ""


def test_without_a_terminal_there_is_a_line_every_few_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    bar = StepBar("oft", seconds=1e9)
    bar.start(total=4)
    for step in range(1, 5):
        bar.show(step, {"loss": 0.5 * step})
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [re.sub(r"  \d+ s left", "", line) for line in lines] == [
        "oft  step 1/4  loss 0.500",
        "oft  step 4/4  loss 2.000",
    ]


# Samples, the model card, what next


@pytest.fixture(scope="module")
def finished(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run <b>"
    _run({**base, "sample_prompts": ["blue1 <i>|", "RED"], "output": run})
    return run


def test_samples_are_greedy_texts_of_the_base_and_of_the_adapter(finished: Path, model_path: Path) -> None:
    from orthotune.operations.generate import generate
    from orthotune.operations.generation.decoding import Decoding

    rows = json.loads((finished / "samples.json").read_text())
    assert [row["prompt"] for row in rows] == ["blue1 <i>|", "RED"]
    found = generate(finished, [row["prompt"] for row in rows], both=True, decoding=Decoding(max_tokens=40))
    assert [(one.base, one.text) for one in found] == [(row["before"], row["after"]) for row in rows]
    page = report_on(finished).read_text()
    assert "Before and after training" in page and "What next" in page and "orthotune merge" in page
    assert "blue1 &lt;i&gt;|" in page and "<i>|" not in page


def test_the_model_card_is_filled_in_and_escaped(finished: Path, model_path: Path) -> None:
    card = (finished / "adapter" / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "base_model": str(model_path), "library_name": "peft", "pipeline_tag": "text-generation",
        "tags": ["orthotune", "oft", "sft", f"base_model:adapter:{model_path}"],
    }  # fmt: skip
    record = json.loads((finished / "run.json").read_text())
    for part in (
        f"{record['new_before']:.3f} | {record['new_after']:.3f}", f"{record['old_before']:.3f}", "3 steps",
        "from orthotune import PeftModel", "from peft import PeftModel", "orthotune chat PATH", "learning\\_rate",
        record["versions"]["torch"].replace("_", "\\_"), "blue1 &lt;i&gt;\\|",
    ):  # fmt: skip
        assert part in body, part
    assert "<" not in re.sub(r"```.*?```", "", body, flags=re.DOTALL)


def test_a_card_cannot_be_escaped_from(finished: Path) -> None:
    bad = "x\n---\n# <script>alert(1)</script> [a](http://b) | `c` \x1b[2J"
    record = RunRecord(**json.loads((finished / "run.json").read_text()))
    record = record.model_copy(update={"settings": {**record.settings, "model": bad, "data": bad}})
    card = model_card(record, [{"prompt": bad, "before": bad, "after": bad}], {"task_type": "CAUSAL_LM"})
    body = re.sub(r"```.*?```", "", card.split("---\n", 2)[2], flags=re.DOTALL)
    assert "\x1b" not in card and "<script" not in body and not re.search(r"(?<!\\)\]\(", body)
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == bad
    assert not [line for line in card.splitlines() if line.startswith("# ") and "alert" in line and "\\[" not in line]
    for code in re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL):
        compile(code, "card", "exec")


def test_the_code_of_the_card_loads_the_adapter(finished: Path, model_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (finished / "adapter" / "README.md").read_text(), flags=re.DOTALL)[0]
    seen: dict[str, Any] = {}
    exec(code.replace("PATH", str(finished / "adapter")), seen)
    assert isinstance(seen["model"], PeftModel)


@pytest.mark.parametrize("word", ["text-world", "smollm2"])
def test_the_words_of_models_are_opened_by_their_folder(finished: Path, word: str) -> None:
    """A word is no name that transformers knows."""
    record = RunRecord(**json.loads((finished / "run.json").read_text()))
    record = record.model_copy(update={"settings": {**record.settings, "model": word}})
    card = model_card(record, [], {"task_type": "CAUSAL_LM"})
    assert f'from_pretrained(model_folder("{word}"))' in card
    shown = loading(Records(finished, run=record.model_dump(mode="json")))
    assert shown is not None and f"from_pretrained('{word}')" not in shown
    compile(shown, "report", "exec")


def test_what_next_fits_what_was_trained(finished: Path, tmp_path: Path) -> None:
    run = json.loads((finished / "run.json").read_text())
    commands = [command for command, _ in next_steps(run, finished)]
    assert [command.split()[1] for command in commands] == ["chat", "rewind", "merge"]
    assert f"'{finished}'" in commands[0]  # a path with a space and a < is quoted
    assert next_steps({"artifacts": {}}, tmp_path) == []
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), OFTConfig(r=2, target_modules=["0"]))
    model.save_pretrained(tmp_path / "adapter")
    others = next_steps({"recipe": "classify", "artifacts": {"adapter": "adapter"}}, tmp_path)
    assert [command.split()[1] for command, _ in others] == ["inspect", "merge"]


def test_a_tracker_is_given_every_step_with_what_is_measured(
    base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tracker of the host's table; none of the real ones is installed here."""
    seen: list[dict[str, Any]] = []

    class Recorder(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **about: Any) -> None:
            seen.append(dict(about["logs"]))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Recorder)
    monkeypatch.setattr(trainer_options, "get_available_reporting_integrations", lambda: ["trackio"])
    values = {**base, "output": tmp_path / "run", "steps": 2, "eval_every": 1, "trackers": "trackio"}
    record = _run(values)
    losses = [line for line in seen if "loss" in line]
    assert len(losses) == 2 and losses[-1]["new_nats"] == record.new_after and losses[-1]["gain"] == record.gain
    assert record.settings["trackers"] == ["trackio"]
