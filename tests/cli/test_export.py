"""``orthotune export``: every layout of a base, every kind of export, bit for bit; and nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.adapter_files import lycoris, merged, onetrainer
from tests.support.after_peft import Run
from tests.support.checkpoint_models import gpt2, llama, save_base
from tests.support.image_bases import STYLE, load_pipeline, save_pipeline, save_single_file

#: float32 on both sides, and the models are a few layers deep
CLOSE: dict[str, float] = {"rtol": 0, "atol": 1e-5}


@pytest.fixture(scope="module")
def _image(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, dict[str, str]]:
    home = tmp_path_factory.mktemp("image")
    pipe = save_pipeline(home / "pipe")
    meant = save_single_file(pipe, home / "sd.safetensors")
    parts = {"unet": pipe.unet, "text_encoder": pipe.text_encoder}
    layers = {raw: parts[part].get_submodule(name).weight.shape[0] for raw, (part, name) in STYLE.items()}
    lycoris(home / "style.safetensors", layers)
    lycoris(home / "butterfly.safetensors", layers, butterfly=2)
    return home, pipe, meant


@pytest.fixture
def image(_image: tuple[Path, Any, dict[str, str]], tmp_path: Path) -> tuple[Path, Any, dict[str, str]]:
    home, pipe, meant = _image
    return Path(shutil.copytree(home, tmp_path / "image")), pipe, meant


def _expected(pipe: Any, adapter: Path) -> dict[str, Tensor]:
    """component.parameter -> number, as the file's own transforms make it."""
    found = {}
    for part in ("unet", "text_encoder", "vae"):
        own = {raw: name for raw, (component, name) in STYLE.items() if component == part}
        model = merged(getattr(pipe, part), adapter, own) if own else getattr(pipe, part)
        found |= {f"{part}.{name}": tensor for name, tensor in model.state_dict().items()}
    return found


def _same(found: dict[str, Tensor], expected: dict[str, Tensor], changed: int) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], msg=lambda text, name=name: f"{name}: {text}", **CLOSE)
    # what does not turn keeps its bits
    assert sum(not torch.equal(tensor, expected[name]) for name, tensor in found.items()) <= changed


@pytest.mark.parametrize("adapter", ["style.safetensors", "butterfly.safetensors"])
def test_pipeline_folder(call: Callable, image: Any, adapter: str) -> None:
    home, pipe, _ = image
    done = call("export", home / adapter, home / "out", "--base", home / "pipe", "--to", "dense")
    assert done.exit_code == 0, done.stderr
    assert "3 of 3 layers loaded" in done.stdout and f"written  {home / 'out'}" in done.stdout
    out = load_pipeline(home / "out")
    parts = {part: getattr(out, part).state_dict() for part in ("unet", "text_encoder", "vae")}
    found = {f"{part}.{name}": tensor for part, numbers in parts.items() for name, tensor in numbers.items()}
    _same(found, _expected(pipe, home / adapter), len(STYLE))
    files = {p.relative_to(home / "pipe") for p in (home / "pipe").rglob("*") if p.is_file()}
    assert {p.relative_to(home / "out") for p in (home / "out").rglob("*") if p.is_file()} == files


def test_single_file(call: Callable, image: Any) -> None:
    home, pipe, meant = image
    base, out = home / "sd.safetensors", home / "new" / "out.safetensors"
    done = call("export", home / "style.safetensors", out, "--base", base, "--to", "dense")
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in out.parent.iterdir()] == ["out.safetensors"]
    found = {meant[name]: tensor for name, tensor in load_file(out).items()}
    _same(found, _expected(pipe, home / "style.safetensors"), len(STYLE))
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"modelspec.architecture": "stable-diffusion-v1"}


def test_one_component_and_a_variant(call: Callable, image: Any) -> None:
    home, pipe, _ = image
    raw = "oft_unet_mid_block_resnets_0_conv1"
    adapter = lycoris(home / "unet.safetensors", {raw: pipe.unet.mid_block.resnets[0].conv1.weight.shape[0]})
    unet = home / "pipe" / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    save_file({k: t.half() for k, t in load_file(weights).items()}, unet / "diffusion_pytorch_model.fp16.safetensors")
    weights.unlink()
    done = call("export", adapter, home / "out", "--base", unet, "--to", "dense")
    assert done.exit_code == 0, done.stderr
    assert {p.name for p in (home / "out").iterdir()} == {"config.json", "diffusion_pytorch_model.fp16.safetensors"}
    new = load_file(home / "out" / "diffusion_pytorch_model.fp16.safetensors")["mid_block.resnets.0.conv1.weight"]
    half = load_file(unet / "diffusion_pytorch_model.fp16.safetensors")["mid_block.resnets.0.conv1.weight"]
    from orthotune.formats.registry import read_adapter

    (transform,) = read_adapter(adapter).layers.values()
    assert new.dtype == torch.float16
    # rounded once to half precision, whose steps at 0.3 are 2.4e-4
    torch.testing.assert_close(new.float(), transform.apply(half), rtol=0, atol=3e-4)


def test_interrupted_it_goes_on_where_it_stopped(
    call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(llama(), tmp_path / "base", shard="6KB")
    adapter = onetrainer(tmp_path / "style.safetensors", {"model.layers.0.mlp.up_proj": 16})
    words = ("export", adapter, tmp_path / "out", "--base", base, "--to", "dense")
    from orthotune.operations.checkpoint import stream

    write, written, stop = stream.write_file, [], [3]

    def interrupted(path: Path, *more: Any) -> None:
        if len(written) == stop[0]:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *more)

    monkeypatch.setattr(stream, "write_file", interrupted)
    assert call(*words).exit_code == 130
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.export.partial").is_dir()
    stop[0] = 100
    assert call(*words).exit_code == 0
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert sorted(written) == shards  # none twice
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in base.iterdir()}
    assert not (tmp_path / ".out.export.partial").exists()
    whole = (*words[:2], tmp_path / "again", *words[3:])
    assert call(*whole).exit_code == 0
    for name in shards:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    # another adapter does not go on with what the first one wrote
    written.clear()
    stop[0] = 2
    other = (*words[:2], tmp_path / "other", *words[3:])
    assert call(*other).exit_code == 130
    onetrainer(adapter, {"model.layers.0.mlp.up_proj": 16}, seed=9)
    stop[0] = 100
    assert call(*other).exit_code == 0
    assert len(written) == 2 + len(shards)


STOCK = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
assert "orthotune" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
model = PeftModel.from_pretrained(model, sys.argv[2])
torch.save(model(torch.arange(12).view(2, 6)).logits.detach(), sys.argv[3])
"""


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_lora_gives_the_adapters_output_in_stock_peft(
    call: Callable, tmp_path: Path, fresh_after_peft: Run, kind: str
) -> None:
    from transformers import AutoModelForCausalLM

    build, layers = {
        "llama": (llama, {"model.layers.0.mlp.up_proj": 16, "model.layers.1.mlp.down_proj": 24}),
        "gpt2": (gpt2, {"transformer.h.0.attn.c_attn": 16, "transformer.h.1.mlp.c_proj": 24}),
    }[kind]
    base = save_base(build(), tmp_path / "base")
    adapter = onetrainer(tmp_path / "style.safetensors", layers)
    out = tmp_path / "lora"
    done = call("export", adapter, out, "--base", base, "--to", "lora", "--error", "0.02")
    assert done.exit_code == 0, done.stderr
    errors = json.loads((out / "lora_errors.json").read_text())
    assert set(errors) == set(layers)
    assert all(0 <= found["relative_error"] <= 0.02 for found in errors.values())
    assert all(f"rank {found['rank']}" in done.stdout for found in errors.values())
    # and an exact one: the change has no higher rank than the smaller side
    exact = tmp_path / "exact"
    assert call("export", adapter, exact, "--base", base, "--to", "lora", "--rank", "64").exit_code == 0
    loaded = fresh_after_peft(STOCK, str(base), str(exact), str(tmp_path / "logits.pt"))
    assert loaded.returncode == 0, loaded.stderr
    model = AutoModelForCausalLM.from_pretrained(base)
    expected = _turned(model, adapter, transposed=kind == "gpt2")(torch.arange(12).view(2, 6)).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected.detach(), rtol=0, atol=1e-4)  # 2 layers
    tensors = load_file(out / "adapter_model.safetensors")
    config = json.loads((out / "adapter_config.json").read_text())
    for name in layers:
        A, B = (tensors[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
        assert A.shape[0] == B.shape[1] == errors[name]["rank"] <= config["r"]
    assert config["r"] == config["lora_alpha"] and config["rank_pattern"] == config["alpha_pattern"]


def _turned(model: Any, adapter: Path, *, transposed: bool) -> Any:
    from orthotune.formats.registry import read_adapter

    with torch.no_grad():
        for name, layer in read_adapter(adapter).layers.items():
            weight = model.get_submodule(name).weight
            weight.copy_(layer.apply(weight.mT).mT if transposed else layer.apply(weight))
    return model


def test_predictions_of_a_lora_are_compared_on_held_out_texts(call: Callable, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from orthotune import OFTConfig, get_peft_model
    from tests.support.contract_cases import randomize
    from tests.support.tiny_text import save_model, write_jsonl

    base = save_model(tmp_path / "base", "float32")
    model = AutoModelForCausalLM.from_pretrained(base)
    randomize(get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=["q_proj", "up_proj"]))).save_pretrained(
        tmp_path / "adapter"
    )
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": "some text"}, {"text": "more of it"}])
    words = ("export", tmp_path / "adapter", tmp_path / "lora", "--base", base, "--held-out", texts, "--overwrite")
    found = []
    for rank in ("1", "32"):
        done = call(*words, "--to", "lora", "--rank", rank)
        assert done.exit_code == 0, done.stderr
        lines = {
            line.split()[2]: float(line.split()[3].rstrip(",")) for line in done.stdout.splitlines() if "same" in line
        }
        found.append(lines)
    # 32 is the largest rank: what remains is float32 in the weights, and its square in the divergence
    assert found[1]["LoRA"] < 1e-9 < found[0]["LoRA"]
    assert found[0]["base"] == found[1]["base"] > 1e-9
    assert call(*words, "--to", "dense").exit_code != 0


def test_lora_of_a_pipeline_loads_in_diffusers(call: Callable, image: Any) -> None:
    home, pipe, _ = image
    adapter = home / "butterfly.safetensors"
    words = ("export", adapter, home / "lora", "--base", home / "pipe", "--to", "lora", "--rank", "500")
    assert call(*words).exit_code == 0
    new = load_pipeline(home / "pipe")
    new.load_lora_weights(home / "lora" / "pytorch_lora_weights.safetensors")
    new.fuse_lora()
    new.unload_lora_weights()
    parts = {part: getattr(new, part).state_dict() for part in ("unet", "text_encoder", "vae")}
    found = {f"{part}.{name}": tensor for part, numbers in parts.items() for name, tensor in numbers.items()}
    _same(found, _expected(pipe, adapter), len(STYLE))


def test_lora_of_a_single_file_has_the_names_of_sd_scripts(call: Callable, image: Any) -> None:
    home, _, _ = image
    out = home / "lora.safetensors"
    words = ("export", home / "style.safetensors", out, "--base", home / "sd.safetensors", "--to", "lora")
    assert call(*words, "--rank", "3").exit_code == 0
    found = load_file(out)
    stems = {name.removesuffix(".alpha") for name in found if name.endswith(".alpha")}
    assert stems == {
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", "lora_unet_input_blocks_4_0_in_layers_2",
        "lora_te_text_model_encoder_layers_1_mlp_fc1",
    }  # fmt: skip
    assert all(found[f"{stem}.alpha"] == found[f"{stem}.lora_down.weight"].shape[0] == 3 for stem in stems)


@pytest.mark.parametrize("base", ["pipe", "sd.safetensors"])
def test_diff_is_the_exact_change(call: Callable, image: Any, base: str) -> None:
    home, pipe, meant = image
    adapter, out = home / "butterfly.safetensors", home / "diff.safetensors"
    done = call("export", adapter, out, "--base", home / base, "--to", "diff")
    assert done.exit_code == 0, done.stderr
    found, expected = load_file(out), _expected(pipe, adapter)
    assert len(found) == len(STYLE)
    for raw, (part, name) in STYLE.items():
        key = f"{part}.{name}.weight"
        spelled = raw
        if part == "unet":
            there = next(k for k, v in meant.items() if v == key).removeprefix("model.diffusion_model.")
            spelled = "lora_unet_" + (name if base == "pipe" else there.removesuffix(".weight")).replace(".", "_")
        before = getattr(pipe, part).get_submodule(name).weight
        torch.testing.assert_close(found[f"{spelled}.diff"], (expected[key] - before).detach(), **CLOSE)


def test_diff_of_a_language_model_has_its_own_names(call: Callable, tmp_path: Path) -> None:
    base = save_base(gpt2(), tmp_path / "base")
    adapter = onetrainer(tmp_path / "style.safetensors", {"transformer.h.0.mlp.c_fc": 16})
    out = tmp_path / "diff.safetensors"
    assert call("export", adapter, out, "--base", base, "--to", "diff").exit_code == 0
    ((name, change),) = load_file(out).items()
    assert name == "transformer.h.0.mlp.c_fc.diff"
    assert call("export", adapter, tmp_path / "whole", "--base", base, "--to", "dense").exit_code == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "whole"))
    (weight,) = [key for key in before if key.endswith("h.0.mlp.c_fc.weight")]
    # GPT-2 stores (in, out), and that is what the change is added to; one rounding of numbers below 1
    torch.testing.assert_close(before[weight] + change, after[weight], rtol=0, atol=1e-7)


def test_what_was_told_before_an_interruption_counts(
    call: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards of two readings, or of two pickles under one name's place, are never mixed."""
    base = save_base(llama(), tmp_path / "base", shard="6KB")
    adapter = onetrainer(tmp_path / "style.safetensors", {"model.layers.0.mlp.up_proj": 16})
    first, second = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save(load_file(adapter), first)
    torch.save({name: -tensor for name, tensor in load_file(adapter).items()}, second)
    from orthotune.operations.checkpoint import stream

    write, written, stop = stream.write_file, [], [2]

    def interrupted(path: Path, *more: Any) -> None:
        if len(written) == stop[0]:
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *more)

    monkeypatch.setattr(stream, "write_file", interrupted)
    shards = len(list(base.glob("*.safetensors")))
    common = ("--base", base, "--to", "dense")
    for number, (one, other) in enumerate(
        [((adapter, "--series", "legacy"), (adapter, "--series", "current")), ((first,), (second,))]
    ):
        out = tmp_path / f"out{number}"
        written.clear()
        stop[0] = 2
        assert call("export", one[0], out, *common, *one[1:]).exit_code == 130
        stop[0] = 1000
        assert call("export", other[0], out, *common, *other[1:]).exit_code == 0
        assert len(written) == 2 + shards


@pytest.mark.parametrize("out", ["style.safetensors", "."])
def test_the_adapter_is_never_written_over(call: Callable, image: Any, out: str) -> None:
    home, _, _ = image
    to = "diff" if out.endswith(".safetensors") else "dense"
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    done = call("export", home / "style.safetensors", home / out, "--base", home / "pipe", "--to", to, "--overwrite")
    assert done.exit_code == 2 and "would be overwritten" in done.stderr
    assert {path: path.read_bytes() for path in home.rglob("*") if path.is_file()} == before


WRONG = {
    "no adapter": (["gone.safetensors", "out", "--base", "pipe", "--to", "dense"], "There is no adapter at"),
    "no base": (["style.safetensors", "out", "--base", "gone", "--to", "dense"], "there is no base model at"),
    "another base": (["style.safetensors", "out", "--base", "llama", "--to", "dense"], "3 of 3 layers that the model"),
    "a pickle": (["style.safetensors", "out.safetensors", "--base", "x.ckpt", "--to", "dense"], "needed: a .safetens"),
    "no rank": (["style.safetensors", "out", "--base", "pipe", "--to", "lora"], "needs --rank or --error"),
    "an idle rank": (["style.safetensors", "out", "--base", "pipe", "--to", "dense", "--rank", "3"], "are for --to"),
    "an error of 2": (["style.safetensors", "out", "--base", "pipe", "--to", "lora", "--error", "2"], "--error 2"),
    "a file for a folder": (["style.safetensors", "sd.safetensors", "--base", "pipe", "--to", "dense"], "a file"),
    "a folder for a file": (["style.safetensors", "pipe", "--base", "pipe", "--to", "diff"], ".safetensors"),
    "a taken place": (["style.safetensors", "pipe", "--base", "pipe", "--to", "dense"], "Add --overwrite"),
    "a damaged adapter": (["cut.safetensors", "out", "--base", "pipe", "--to", "dense"], "is cut off"),
    "a damaged base": (["style.safetensors", "out", "--base", "broken", "--to", "dense"], "is cut off"),
    "a wrong option": (["style.safetensors", "out", "--base", "pipe", "--to", "dense", "--series", "x"], "--series x"),
    "below a file": (["style.safetensors", "cut.safetensors/x/out", "--base", "pipe", "--to", "dense"], "written to"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words_end_in_one_error(call: Callable, image: Any, name: str) -> None:
    home, _, _ = image
    words, said = WRONG[name]
    (home / "cut.safetensors").write_bytes((home / "style.safetensors").read_bytes()[:-9])
    (home / "x.ckpt").write_bytes(b"x")
    if "llama" in words:
        save_base(llama(), home / "llama")
    if "broken" in words:
        shutil.copytree(home / "pipe", home / "broken")
        weights = home / "broken" / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-9])
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    done = call("export", *(word if word.startswith("--") or not _path(word) else home / word for word in words))
    assert done.exit_code == 2, (done.stdout, done.stderr, done.exception)
    flat = " ".join(done.stderr.replace("│", " ").split())
    assert said.lower() in flat.lower()
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path in before} == before
    assert set(home.rglob("*")) == set(before)


def _path(word: str) -> bool:
    return word not in ("dense", "lora", "diff", "3", "2", "x")
