"""Our configurations for PEFT's benchmarks: both libraries read them, they fit the models, and their script tells."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from peft.tuners.oft.config import OFTConfig as PeftOFTConfig
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import orthotune
from orthotune import OFTConfig
from orthotune.layers.base import OFTLayer
from peft_method_comparison import run

CONFIGS = sorted(run.HERE.rglob("adapter_config.json"))
#: Layers of Llama-3.2-3B; one is built here, and the layers are alike.
LAYERS = 28


def name_of(path: Path) -> str:
    return f"{path.relative_to(run.HERE).parts[0]}-{path.parent.name}"


def llama() -> nn.Module:
    """One layer of Llama-3.2-3B's shapes, without memory for its weights."""
    with torch.device("meta"):
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=3072, intermediate_size=8192, num_hidden_layers=1, num_attention_heads=24,
                num_key_value_heads=8, vocab_size=64,
            )
        )  # fmt: skip


def flux() -> nn.Module:
    """FLUX.2's transformer with one block of each kind, small enough to build."""
    diffusers = pytest.importorskip("diffusers", minversion="0.38")
    return diffusers.Flux2Transformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, num_attention_heads=2, attention_head_dim=32,
        joint_attention_dim=64, timestep_guidance_channels=32, axes_dims_rope=(8, 8, 8, 8),
    )  # fmt: skip


def adapted(path: Path) -> nn.Module:
    """The benchmark's model with the adapter of a configuration; a warning is an error."""
    orthotune.register()
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names of its own
        return get_peft_model(flux() if "image-gen" in path.parts else llama(), OFTConfig.from_pretrained(path.parent))


def test_both_benchmarks_have_configurations() -> None:
    assert {path.relative_to(run.HERE).parts[0] for path in CONFIGS} == set(run.BENCHMARKS)
    for benchmark in run.BENCHMARKS:
        assert run.experiments(benchmark)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_stock_peft_and_orthotune_read_the_same_from_a_configuration(path: Path) -> None:
    written = json.loads(path.read_text())
    # Stock PEFT warns of keys that are no fields of its config.
    assert set(written) <= {field.name for field in dataclasses.fields(PeftOFTConfig)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PeftOFTConfig.check_kwargs(**written)
        stock, ours = PeftOFTConfig(**written), OFTConfig.from_pretrained(str(path.parent))
    assert isinstance(ours, OFTConfig)
    for key in written:
        assert getattr(stock, key) == getattr(ours, key), key
    assert not ours.use_cayley_neumann and not ours.magnitude
    assert ours.to_dict()["peft_type"] == "OFT"  # so that stock PEFT reads the trained adapter, too


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_every_target_exists_and_every_block_is_of_the_size_that_is_named(path: Path) -> None:
    written = json.loads(path.read_text())
    layers = {name: layer for name, layer in adapted(path).named_modules() if isinstance(layer, OFTLayer)}
    for target in written["target_modules"]:
        assert any(name.endswith(f".{target}") for name in layers), target
    assert {layer.oft_R["default"].spec.block_size for layer in layers.values()} == {written["oft_block_size"]}


def test_the_table_of_the_page_counts_the_trained_parameters() -> None:
    page = (run.HERE / "README.md").read_text()
    table = dict(re.findall(r"^\| `(llama[^`]+)` \|.*\| ([\d,]+) \|$", page, re.MULTILINE))
    counted = {
        path.parent.name: f"{LAYERS * sum(p.numel() for p in adapted(path).parameters() if p.requires_grad):,}"
        for path in CONFIGS
        if "MetaMathQA" in path.parts
    }
    assert table == counted


def called(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(run.HERE / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files by which a clone of PEFT is known; the runners of it cannot start."""
    for benchmark in run.BENCHMARKS:
        folder = tmp_path / "peft" / "method_comparison" / benchmark
        folder.mkdir(parents=True)
        (folder / "run.py").write_text("raise RuntimeError('no accelerator')\n")
    return tmp_path / "peft"


def test_help_names_the_options() -> None:
    shown = called("--help")
    assert shown.returncode == 0 and "--benchmark" in shown.stdout and "--only" in shown.stdout


def test_no_checkout_ends_in_one_line(tmp_path: Path) -> None:
    ended = called(tmp_path)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "method_comparison/MetaMathQA/run.py" in ended.stderr


@pytest.mark.parametrize("more", [(), ("--benchmark", "image-gen")], ids=["both", "one"])
def test_an_unknown_experiment_ends_in_one_line_with_those_there_are(checkout: Path, more: tuple[str, ...]) -> None:
    ended = called(checkout, "--only", "nothing", *more)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "flux2-klein-exact-b32" in ended.stderr
    assert ("mlp-b32" in ended.stderr) is (not more)


@pytest.mark.parametrize("change", ["another", "one more", "one less"])
def test_an_experiment_of_the_same_name_is_left_alone(checkout: Path, change: str) -> None:
    name = "llama-3.2-3B-mlp-b32-lr4e-4"
    theirs = checkout / "method_comparison" / "MetaMathQA" / "experiments" / "oft" / name
    run.copy_experiment(run.HERE / "MetaMathQA" / "experiments" / "oft" / name, theirs)
    file = theirs / ("more.json" if change == "one more" else "training_params.json")
    file.unlink() if change == "one less" else file.write_text("{}")
    before = {path.name: path.read_bytes() for path in theirs.iterdir()}
    ended = called(checkout, "--only", name)
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert str(theirs) in ended.stderr and "Move it away" in ended.stderr
    assert {path.name: path.read_bytes() for path in theirs.iterdir()} == before


def test_a_finished_experiment_is_not_run_again(checkout: Path) -> None:
    for benchmark in run.BENCHMARKS:
        for name in run.experiments(benchmark):
            done = checkout / "method_comparison" / benchmark / "adapters" / name
            done.mkdir(parents=True)
            (done / run.FIGURES).write_text("{}")
    ended = called(checkout)
    assert ended.returncode == 0 and not ended.stderr
    assert ended.stdout.count("finished already\n") == len(CONFIGS)


def test_a_runner_that_does_not_start_ends_in_one_line(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkout)  # and back, since the script goes to the runner's folder
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = checkout / "method_comparison" / "MetaMathQA"
    with pytest.raises(SystemExit) as ended:
        run.run_one(folder, "llama-3.2-3B-mlp-b32")
    told = capsys.readouterr().err
    assert ended.value.code == run.NOT_READY
    assert told.count("\n") == 1 and "RuntimeError: no accelerator" in told
    assert "Traceback" in (folder / "adapters" / "llama-3.2-3B-mlp-b32" / "error.txt").read_text()
