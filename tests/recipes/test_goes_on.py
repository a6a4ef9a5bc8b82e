"""Training that goes on: an adapter trained further, a finished run made longer, a run resumed by its output alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback
from typer.testing import CliRunner

from orthotune import convert
from orthotune.cli.main import app
from orthotune.errors import OutputError, RecipeError
from orthotune.recipes import sft
from orthotune.recipes.load import load_settings
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.settings import SFTSettings

METHODS = ("oft", "coft", "lora")


@pytest.fixture(scope="module")
def base(model_path: Path, text_path: Path, old_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_path), "data": str(text_path), "old_data": str(old_path), "batch_size": 2, "max_length": 32,
        "learning_rate": 1e-2, "schedule": "constant", "warmup": 1, "eval_every": 9, "sample_prompts": [],
        "save_every": 2,
    }  # fmt: skip


@pytest.fixture(scope="module")
def runs(base: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of two steps of each method, one with magnitudes."""
    folder = tmp_path_factory.mktemp("runs")
    for method in METHODS:
        own: dict[str, Any] = {"block_size": 8} | ({"rotation": {"magnitude": True}} if method == "oft" else {})
        _run({**base, **own, "method": method, "steps": 2, "output": folder / method})
    return {method: folder / method for method in METHODS}


class _Start(TrainerCallback):
    """The trainable parameters before the first step."""

    def __init__(self) -> None:
        self.found: dict[str, torch.Tensor] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        self.found = {name: p.detach().clone() for name, p in seen["model"].named_parameters() if p.requires_grad}


def _run(values: dict[str, Any], *callbacks: TrainerCallback) -> Any:
    return sft.run(SFTSettings(**values), say=lambda _: None, callbacks=callbacks, bar=False)


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


# adapter=


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_is_trained_further_from_exactly_its_parameters(
    base: dict[str, Any], runs: dict[str, Path], method: str, tmp_path: Path
) -> None:
    start = _Start()
    settings = {**base, "adapter": runs[method], "steps": 2, "output": tmp_path / "run"}
    record = _run(settings, start)
    assert record.method == method  # nobody named it: the adapter decides
    before = _tensors(runs[method])
    held = {name.replace(".default", "").replace("magnitude.weight", "magnitude"): tensor
            for name, tensor in start.found.items()}  # fmt: skip
    assert held.keys() == before.keys() and all(torch.equal(held[key], before[key]) for key in before)
    after = _tensors(tmp_path / "run")
    assert after.keys() == before.keys() and any(not torch.equal(after[key], before[key]) for key in before)
    # What the run before ended with is what this one begins with; float32, the same rows: bit for bit.
    earlier = json.loads((runs[method] / "run.json").read_text())
    assert (record.new_before, record.old_before) == (earlier["new_after"], earlier["old_after"])
    assert any("is trained further" in note for note in record.notes)
    assert any("drift and the first samples, from the base" in note for note in record.notes)
    # The record makes the same settings again, as measuring a run does.
    assert SFTSettings(**record.settings).record() == record.settings


def test_an_adapter_of_another_tool_is_trained_further(
    base: dict[str, Any], runs: dict[str, Path], tmp_path: Path
) -> None:
    """A single file, which records neither base nor method."""
    convert(runs["coft"] / "adapter", tmp_path / "other.safetensors", "onetrainer", approximate=True)
    start = _Start()
    settings = {**base, "adapter": tmp_path / "other.safetensors", "steps": 1, "output": tmp_path / "run"}
    assert _run(settings, start).method == "oft"
    stored = sorted(load_file(tmp_path / "other.safetensors").values(), key=lambda one: (one.shape, one.sum()))
    held = sorted(start.found.values(), key=lambda one: (one.shape, one.sum()))
    assert len(held) == len(stored) and all(torch.equal(one, two) for one, two in zip(held, stored, strict=True))


def test_a_continued_run_that_is_cut_off_ends_with_the_same_bits(
    base: dict[str, Any], runs: dict[str, Path], tmp_path: Path
) -> None:
    class Accident(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
            if state.global_step == 2:
                raise KeyboardInterrupt

    values = {**base, "adapter": runs["oft"], "steps": 4}
    _run({**values, "output": tmp_path / "through"})
    with pytest.raises(KeyboardInterrupt):
        _run({**values, "output": tmp_path / "cut"}, Accident())
    # The output alone is enough: the run's own settings are read.
    again = load_settings(SFTSettings, None, [f"output={tmp_path / 'cut'}", "resume=auto"])
    assert again.record() == SFTSettings(**values, output=tmp_path / "cut", resume="auto").record()
    sft.run(again, say=lambda _: None, bar=False)
    one, other = _tensors(tmp_path / "through"), _tensors(tmp_path / "cut")
    assert all(torch.equal(one[key], other[key]) for key in one)


# A longer run


def test_a_finished_run_made_longer_is_the_longer_run(base: dict[str, Any], tmp_path: Path) -> None:
    """With a constant rate nothing depends on the number of steps: the same bits."""
    values = {**base, "block_size": 8}
    _run({**values, "steps": 4, "output": tmp_path / "long"})
    _run({**values, "steps": 2, "output": tmp_path / "run"})
    words = ["train", "sft", f"output={tmp_path / 'run'}", "resume=auto", "steps=4"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    one, other = _tensors(tmp_path / "long"), _tensors(tmp_path / "run")
    assert all(torch.equal(one[key], other[key]) for key in one)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"] == 4 and json.loads((tmp_path / "run" / "run-2.json").read_text())["steps"] == 2
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 1, 2, 3, 4]
    for part in ("What next:", f"orthotune chat {tmp_path / 'run'} --both", "orthotune rewind", "orthotune merge"):
        assert part in result.output
    # the same again is finished, and fewer steps are refused
    assert "finished" in CliRunner().invoke(app, words).output
    fewer = CliRunner().invoke(app, [*words[:-1], "steps=3"])
    assert fewer.exit_code == 2 and "steps may be raised, not lowered" in fewer.stderr


def test_a_run_without_checkpoints_cannot_be_made_longer(base: dict[str, Any], runs: dict[str, Path]) -> None:
    directory, kept = runs["lora"], runs["lora"] / "checkpoints"
    kept.rename(directory / "moved")
    try:
        with pytest.raises(OutputError, match="without a checkpoint.*adapter=RUN"):
            sft.run(load_settings(SFTSettings, None, [f"output={directory}", "resume=auto", "steps=9"]), bar=False)
    finally:
        (directory / "moved").rename(kept)
    rewound = directory / "rewound"
    rewound.mkdir()
    try:
        with pytest.raises(OutputError, match="rewound of the shorter run"):
            sft.run(load_settings(SFTSettings, None, [f"output={directory}", "resume=auto", "steps=9"]), bar=False)
    finally:
        rewound.rmdir()
    assert (directory / "run.json").is_file()


# Wrong input

WRONG: list[tuple[list[str], str]] = [
    (["adapter=no/such", "steps=1"], "adapter=no/such. Found: no such file or folder"),
    (["adapter={runs}/ofd"], "Did you mean {runs}/oft?"),
    (["adapter={model}"], "a folder without adapter_config.json"),
    (["adapter={runs}/oft", "method=lora"], "method=lora is decided by the adapter that is continued, method=oft"),
    (["adapter={runs}/oft", "block_size=4"], "block_size=4 is decided by the adapter"),
    (["adapter={runs}/lora", "lora_rank=4"], "lora_rank=4 is decided by the adapter"),
    (["adapter={runs}/oft", "model=text-world"], "Load the adapter on the base model that it was trained on"),
    (["adapter={runs}/lora", "model=text-world"], "the base model that the adapter was trained on"),
    (["adapter=''"], "no such file or folder"),
    (["optim=adamw8"], "no such optimizer"),
    (["optim=adamw_8bit"], "Run pip install bitsandbytes"),
    (["optim=muon"], "Leave optim out, or choose method=lora or full"),
    (["optim_options={{beta1: 2}}"], "optim_options.beta1=2"),
    (["schedule=cosine_with_min_lr"], "schedule_options.min_lr"),
    (["schedule_options={{x: 1}}"], "schedule=cosine with schedule_options"),
    (["trackers=wandb"], "trackers=wandb. Found: not installed"),
    (["trackers=[wndb]"], "Did you mean 'wandb'?"),
    (["liger=true"], "no package liger_kernel"),
    (["attention=flash"], "attention=flash"),
    (["neftune_noise_alpha=-1"], "neftune_noise_alpha"),
    (["output={runs}/oft", "resume=auto", "seed=3"], "seed=3 instead of 0"),
    (["lr=1"], "Did you mean 'learning_rate'?"),
    (["num_train_epochs=1"], "Did you mean 'epochs'?"),
]


@pytest.mark.parametrize(("words", "message"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_input_is_worded(
    base: dict[str, Any], runs: dict[str, Path], model_path: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    places = {"runs": runs["oft"].parent, "model": model_path}
    usual = [f"{key}={base[key]}" for key in ("data", "old_data")] + [f"output={tmp_path / 'out'}"]
    if not any(word.startswith("model=") for word in words):
        usual.append(f"model={model_path}")
    usual = [word for word in usual if "resume=auto" not in words]
    result = CliRunner().invoke(app, ["train", "sft", *usual, *(word.format(**places) for word in words)])
    assert result.exit_code == 2, result.output
    assert message.format(**places) in result.stderr and "Traceback" not in result.output
    assert not (tmp_path / "out").exists() and len(result.stderr.strip().splitlines()) <= 3, result.stderr


def test_a_run_of_another_recipe_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "t2i", f"output={runs['oft']}", "resume=auto"])
    assert result.exit_code == 2 and "a run of `orthotune train sft`" in result.stderr
    # of an earlier release, whose settings do not name the recipe
    old = tmp_path / "old"
    old.mkdir()
    settings = json.loads((runs["oft"] / "settings.json").read_text())
    assert settings.pop("recipe") == "sft"
    (old / "settings.json").write_text(json.dumps(settings))
    result = CliRunner().invoke(app, ["train", "t2i", f"output={old}", "resume=auto"])
    assert result.exit_code == 2 and "a run with settings that t2i does not have" in result.stderr
    assert load_settings(SFTSettings, None, [f"output={old}", "resume=auto"]).steps == 2


def test_a_preset_does_not_change_a_run_that_goes_on(tmp_path: Path) -> None:
    """``retain`` sets keep=1; a run with keep=0, which is the default and not recorded, keeps nothing when resumed."""
    about: dict[str, Any] = {"preset": "retain", "keep": 0, "output": tmp_path, "resume": "auto"}
    given = SFTSettings(model="text-world", data="text-world/new_train", **about)
    (tmp_path / "settings.json").write_text(json.dumps(given.claimed()))
    again = load_settings(SFTSettings, None, [f"output={tmp_path}", "resume=auto"])
    assert again.keep == 0 and again.record() == given.record()
    longer = load_settings(SFTSettings, None, [f"output={tmp_path}", "resume=auto", "epochs=3"])
    assert longer.epochs == 3 and longer.steps is None


def test_what_cannot_be_combined_is_an_error_of_a_recipe(runs: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match="decided by the adapter"):
        load_settings(SFTSettings, None, [f"adapter={runs['oft']}", "rotation.side=out"])


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_every_recipe_come_back_from_the_output_alone(name: str, method: str, tmp_path: Path) -> None:
    kind = RECIPES[name].settings_class()
    given: Any = kind(method=method, seed=7, output=tmp_path, resume="auto")
    (tmp_path / "settings.json").write_text(json.dumps(given.claimed()))
    again = load_settings(kind, None, [f"output={tmp_path}", "resume=auto"])
    assert again.record() == given.record()
    assert load_settings(kind, None, [f"output={tmp_path}"]).seed == 0  # without resume nothing is read
