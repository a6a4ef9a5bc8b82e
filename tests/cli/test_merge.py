"""``orthotune merge``: the merged model is the tuned one, and nothing is half-written when it fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import small_llama


def _left(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_merged_model_gives_the_tuned_output(call: Callable, trained: Path) -> None:
    from transformers import AutoModelForCausalLM

    done = call("merge", trained / "adapter", "--out", trained / "merged")
    assert done.exit_code == 0, done.stderr
    assert f"merged model  {trained / 'merged'}" in done.stdout
    tokens, expected = torch.load(trained / "expected.pt")
    merged = AutoModelForCausalLM.from_pretrained(trained / "merged").eval()
    # float32, 16 features: the order of additions differs
    torch.testing.assert_close(merged(tokens).logits, expected, rtol=0, atol=1e-5)
    assert not [name for name, _ in merged.named_parameters() if "oft" in name]
    base = AutoModelForCausalLM.from_pretrained(trained / "base").eval()
    assert (base(tokens).logits - expected).abs().max() > 1e-3
    assert _left(trained) == {"adapter", "base", "merged", "expected.pt"}


def test_dtype_of_the_merged_model(call: Callable, trained: Path) -> None:
    assert call("merge", trained / "adapter", "-o", trained / "merged", "--dtype", "bfloat16").exit_code == 0
    assert {t.dtype for t in load_file(trained / "merged" / "model.safetensors").values()} == {torch.bfloat16}


def test_taken_place_is_kept_unless_overwrite(call: Callable, trained: Path) -> None:
    place = trained / "merged"
    place.mkdir()
    (place / "mine.txt").write_text("keep me")
    done = call("merge", trained / "adapter", "--out", place)
    assert done.exit_code == 2
    assert "a folder that is not empty" in done.stderr
    assert "--overwrite" in done.stderr
    assert _left(place) == {"mine.txt"}
    assert call("merge", trained / "adapter", "--out", place, "--overwrite").exit_code == 0
    assert "mine.txt" not in _left(place)
    assert "model.safetensors" in _left(place)


def test_place_below_a_file_is_refused(call: Callable, trained: Path) -> None:
    done = call("merge", trained / "adapter", "--out", trained / "expected.pt" / "merged")
    assert done.exit_code == 2
    assert "Name a folder that can be written to" in done.stderr
    assert call("merge", trained / "adapter", "--out", trained / "expected.pt").exit_code == 2


def test_another_base_is_refused_with_both_shapes(call: Callable, trained: Path) -> None:
    small_llama(hidden=32).save_pretrained(trained / "other")
    done = call("merge", trained / "adapter", "--base", trained / "other", "--out", trained / "merged")
    assert done.exit_code == 2
    assert "q_proj" in done.stderr
    assert "(4, 6)" in done.stderr
    assert "(8, 6)" in done.stderr
    assert _left(trained) == {"adapter", "base", "other", "expected.pt"}


def _cut_off(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def _poison(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, path)


def _forget_base(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))


def _lose_base(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "./gone/model"}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_cut_off, ["adapter_model.safetensors is cut off"]),
        (_poison, ["NaN", "oft_R.weight"]),
        (_forget_base, ["does not record its base model", "--base"]),
        (_lose_base, ["./gone/model does not exist", "--base"]),
        (shutil.rmtree, ["There is no adapter at"]),
    ],
)
def test_damage_is_worded_and_nothing_is_written(
    call: Callable, trained: Path, damage: Callable, words: list[str]
) -> None:
    damage(trained / "adapter")
    done = call("merge", trained / "adapter", "--out", trained / "merged")
    assert done.exit_code == 2
    assert not [word for word in words if word not in done.stderr], done.stderr
    assert _left(trained) <= {"adapter", "base", "expected.pt"}


def test_diffusers_model_and_pipeline_keep_their_layout(call: Callable, tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from orthotune import OFTConfig, get_peft_model

    def unet() -> UNet2DModel:
        torch.manual_seed(0)
        return UNet2DModel(
            sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 16), norm_num_groups=4,
            layers_per_block=1, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    tuned = get_peft_model(unet(), OFTConfig(oft_block_size=4, target_modules=["to_q", "conv1"]))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    tuned.save_pretrained(tmp_path / "adapter")
    x, step = torch.randn(2, 1, 8, 8), torch.tensor(3)
    expected = tuned.eval()(x, step).sample.detach()
    for base, part in (("pipe", "unet"), ("pipe/unet", ".")):
        out = tmp_path / base.replace("/", "-merged-")
        done = call("merge", tmp_path / "adapter", "--base", tmp_path / base, "--out", out, "--overwrite")
        assert done.exit_code == 0, done.stderr
        merged = UNet2DModel.from_pretrained(out / part).eval()
        torch.testing.assert_close(merged(x, step).sample, expected, rtol=0, atol=1e-4)
        if part == "unet":
            DDPMPipeline.from_pretrained(out)
            DDPMPipeline(unet(), DDPMScheduler()).save_pretrained(tmp_path / "pipe")


def test_streamed_merge_is_the_merge(call: Callable, trained: Path) -> None:
    words = ("merge", trained / "adapter", "--base", trained / "base", "--out")
    assert call(*words, trained / "merged").exit_code == 0
    done = call(*words, trained / "streamed", "--stream")
    assert done.exit_code == 0, done.stderr
    assert "shard 1 of 1  model.safetensors" in done.stderr
    assert f"merged model  {trained / 'streamed'}" in done.stdout
    expected = load_file(trained / "merged" / "model.safetensors")
    found = load_file(trained / "streamed" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert _left(trained) == {"adapter", "base", "merged", "streamed", "expected.pt"}
    # the place is taken now
    done = call(*words, trained / "streamed", "--stream")
    assert done.exit_code == 2 and "a folder that is not empty" in done.stderr
    assert call(*words, trained / "streamed", "--stream", "--dtype", "float16").exit_code == 2


@pytest.mark.parametrize("damage", [_cut_off, _poison, _lose_base])
def test_streaming_that_fails_leaves_nothing(call: Callable, trained: Path, damage: Callable) -> None:
    damage(trained / "adapter")
    done = call("merge", trained / "adapter", "--out", trained / "merged", "--stream")
    assert done.exit_code == 2, done.stderr
    assert _left(trained) == {"adapter", "base", "expected.pt"}


def test_streaming_into_a_place_below_a_file(call: Callable, trained: Path) -> None:
    done = call("merge", trained / "adapter", "--out", trained / "expected.pt" / "merged", "--stream")
    assert done.exit_code == 2
    assert "Name a folder that can be written to" in done.stderr


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_adapters_of_other_tools_merge_too(call: Callable, trained: Path, more: list[str]) -> None:
    from orthotune.formats.registry import read_adapter
    from tests.support.adapter_files import onetrainer

    name = "model.layers.0.mlp.up_proj"
    adapter = onetrainer(trained / "style.safetensors", {f"transformer.{name}": 16})
    words = ("merge", adapter, "--base", trained / "base", "--out", trained / "merged", *more)
    assert call(*words).exit_code == 0
    before, after = (load_file(trained / place / "model.safetensors") for place in ("base", "merged"))
    ((_, layer),) = read_adapter(adapter).layers.items()
    changed = [key for key, tensor in after.items() if not torch.equal(tensor, before[key])]
    assert changed == [f"{name}.weight"]
    # float32 sums of 16 products
    torch.testing.assert_close(after[changed[0]], layer.apply(before[changed[0]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("out", ["adapter", "."])
@pytest.mark.parametrize("stream", [[], ["--stream"]], ids=["", "stream"])
def test_the_adapter_is_never_written_over(call: Callable, trained: Path, out: str, stream: list[str]) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    words = ("--base", trained / "base", "--out", trained / out, "--overwrite")
    done = call("merge", trained / "adapter", *words, *stream)
    assert done.exit_code == 2 and "would be overwritten" in done.stderr
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_damaged_base_is_words(call: Callable, trained: Path) -> None:
    weights = trained / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    done = call("merge", trained / "adapter", "--base", trained / "base", "--out", trained / "merged")
    assert done.exit_code == 2 and "is damaged" in done.stderr
    assert _left(trained) == {"adapter", "base", "expected.pt"}


@pytest.mark.parametrize("damage", ["lost", "scales"])
def test_a_base_that_would_be_filled_with_random_numbers_is_refused(call: Callable, trained: Path, damage: str) -> None:
    weights = trained / "base" / "model.safetensors"
    tensors = load_file(weights)
    name = next(key for key in tensors if key.endswith("q_proj.weight"))
    if damage == "lost":
        del tensors[name]
    else:
        tensors[f"{name}_scale"] = torch.ones(1)
    save_file(tensors, weights, metadata={"format": "pt"})
    done = call("merge", trained / "adapter", "--base", trained / "base", "--out", trained / "merged")
    assert done.exit_code == 2 and "q_proj" in done.stderr
    assert _left(trained) == {"adapter", "base", "expected.pt"}
