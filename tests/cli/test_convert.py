"""``orthotune convert`` writes what another tool loads, or says why it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from orthotune.cli import convert
from orthotune.formats import read_adapter
from orthotune.formats.kinds import DIFF
from orthotune.formats.registry import targets

FIXTURES = Path(__file__).parents[1] / "fixtures"
KOHYA = FIXTURES / "kohya-oft-2023-10" / "plain" / "adapter.safetensors"
LYCORIS = FIXTURES / "lycoris-3.0.0" / "diag_plain" / "adapter.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    io = load_file(LYCORIS.parent / "io.safetensors")
    folder = tmp_path / "base" / "unet"
    folder.mkdir(parents=True)
    save_file({f"blk.{n}.weight": io[f"{n}.weight"] for n in ("lin", "conv")}, folder / "model.safetensors")
    return folder.parent


def test_help_names_every_target() -> None:
    assert set(convert._targets().rstrip(".").replace("; or", ",").split(", ")) == {*targets(), DIFF}


def test_file_for_comfyui(call: Callable, tmp_path: Path) -> None:
    done = call("convert", KOHYA, tmp_path / "out.safetensors", "--to", "comfyui")
    assert done.exit_code == 0, done.stderr
    assert "lossless" in done.stdout
    assert all(name.startswith("lora_unet_") for name in load_file(tmp_path / "out.safetensors"))
    again = call("convert", KOHYA, tmp_path / "out.safetensors", "--to", "comfyui")
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr


def test_names_come_from_the_base(call: Callable, tmp_path: Path, base: Path) -> None:
    done = call("convert", LYCORIS, tmp_path / "out", "--to", "peft-0.8", "--base", base)
    assert done.exit_code == 0, done.stderr
    assert set(read_adapter(tmp_path / "out").layers) == {"blk.lin", "blk.conv"}


def test_impossible_pairs_name_the_way_out(call: Callable, tmp_path: Path, base: Path) -> None:
    done = call("convert", LYCORIS, tmp_path / "out", "--to", "peft")
    assert done.exit_code == 2
    assert "--to diff --base" in done.stderr
    out = tmp_path / "diff.safetensors"
    done = call("convert", LYCORIS, out, "--to", "diff", "--base", base / "unet" / "model.safetensors")
    assert done.exit_code == 0, done.stderr
    io, diff = load_file(LYCORIS.parent / "io.safetensors"), load_file(out)
    for name in ("lin", "conv"):
        # two float32 computations of one weight of about 1
        (change,) = [tensor for key, tensor in diff.items() if key.endswith(f"blk_{name}.diff")]
        merged = io[f"{name}.weight"] + change
        torch.testing.assert_close(merged, io[f"{name}.weight_merged"], rtol=0, atol=2e-6)


def test_approximation_is_asked_for_and_measured(call: Callable, tmp_path: Path) -> None:
    series = FIXTURES / "peft-0.17.1-oft" / "neumann5"
    out = tmp_path / "out"
    assert "--approximate" in call("convert", series, out, "--to", "peft").stderr
    assert not out.exists()
    done = call("convert", series, out, "--to", "peft", "--approximate")
    assert done.exit_code == 0, done.stderr
    assert "error " in done.stdout
    assert read_adapter(out).format == "peft-oft"


def test_convolutions_are_asked_about(call: Callable, tmp_path: Path) -> None:
    series, out = FIXTURES / "peft-0.21.2-oft" / "neumann4", tmp_path / "out.safetensors"
    asked = call("convert", FIXTURES / "peft-0.21.2-oft" / "neumann5", out, "--to", "onetrainer")
    assert asked.exit_code == 2
    assert "--linear" in asked.stderr
    assert call("convert", series, out, "--to", "onetrainer", "--linear", "--approximate").exit_code == 0
    assert list(load_file(out)) == ["lora_unet_lin.oft_R.weight"]


def test_what_the_file_does_not_say_is_passed_on(call: Callable, tmp_path: Path) -> None:
    november = FIXTURES / "onetrainer-oftv2-2025-11-14" / "plain" / "adapter_kohya.safetensors"
    done = call("convert", november, tmp_path / "o", "--to", "onetrainer", "--series", "legacy", "--dry-run")
    assert "approximate" in done.stdout


def test_dry_run_writes_nothing(call: Callable, tmp_path: Path) -> None:
    done = call("convert", LYCORIS, tmp_path / "out", "--to", "peft", "--dry-run")
    assert done.exit_code == 0
    assert "impossible" in done.stdout
    assert "distinct singular values" in done.stdout
    assert not (tmp_path / "out").exists()


def test_wrong_words_are_two_and_words(call: Callable, tmp_path: Path, base: Path) -> None:
    for words in (
        [LYCORIS, tmp_path / "o", "--to", "comfy"],
        [LYCORIS, tmp_path / "o", "--to", "diff"],
        [LYCORIS, tmp_path / "o", "--to", "diff", "--base", tmp_path / "nowhere"],
        [tmp_path / "none", tmp_path / "o", "--to", "comfyui"],
        [LYCORIS, tmp_path, "--to", "comfyui"],
        [LYCORIS, tmp_path / "o", "--to", "comfyui"],
        [LYCORIS, tmp_path / "o", "--to", "comfyui", "--series", "new"],
    ):
        done = call("convert", *words)
        assert (done.exit_code, "Traceback" in done.stderr) == (2, False), done.stderr
        assert not (tmp_path / "o").exists()


def test_the_adapter_is_never_written_over(call: Callable, tmp_path: Path) -> None:
    own = tmp_path / "own.safetensors"
    own.write_bytes(LYCORIS.read_bytes())
    done = call("convert", own, own, "--to", "comfyui", "--overwrite")
    assert done.exit_code == 2 and "would be overwritten" in done.stderr
    assert own.read_bytes() == LYCORIS.read_bytes()
