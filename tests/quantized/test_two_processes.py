"""A 4-bit base shared by two processes under FSDP2, and bases that cannot be shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orthotune.errors import RecipeError
from orthotune.quantized.loading_options import WHILE_LOADING, _installed
from orthotune.text.causal_model import load_model
from orthotune.text.shared_base import check_shared_base
from tests.support.tiny_text import save_model, texts, write_jsonl

TESTS = Path(__file__).parents[1]
#: seconds after which a launch hangs; it takes about 15 on a quiet core
LONG = 200
#: Rounding of sums over the examples alone, as for a base that is not quantized (tests/distributed).
CURVE, NUMBERS = 1e-5, 1e-6


def _lines(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def _trained(home: Path, name: str, *launcher: str, word: str = "none") -> Path:
    words = {"model": "model", "data": "new.jsonl", "old_data": "old.jsonl", "quantization": "nf4", "steps": 3,
             "batch_size": 4, "max_length": 32, "learning_rate": 1e-2, "eval_every": 3, "output": name,
             "distributed": word}  # fmt: skip
    command = [sys.executable, *launcher, "-m", "orthotune", "train", "sft"]
    command += [f"{key}={value}" for key, value in words.items()]
    place = {**os.environ, "PYTHONPATH": str(TESTS.parent / "src"), "OMP_NUM_THREADS": "1"}
    with (home / f"{name}.log").open("w") as log:
        running = subprocess.Popen(command, cwd=home, env=place, stdout=log, stderr=log, start_new_session=True)
        try:
            status: int | str = running.wait(LONG)
        except subprocess.TimeoutExpired:
            status = f"a hang: not done after {LONG} seconds"
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    assert status == 0, (home / f"{name}.log").read_text()[-4000:]
    return home / name


def test_a_4bit_base_trains_in_two_processes_as_in_one(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    save_model(tmp_path / "model", dtype="float32")
    write_jsonl(tmp_path / "new.jsonl", texts(12, "blue"))
    write_jsonl(tmp_path / "old.jsonl", texts(4, "red"))
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d")
    shared = _trained(tmp_path, "two", *torchrun, "--rdzv-endpoint", "127.0.0.1:0", word="fsdp2")
    alone = _trained(tmp_path, "one")
    for key in ("train_loss", "old_nats"):
        assert _lines(shared, key) == pytest.approx(_lines(alone, key), rel=CURVE)
    assert _lines(alone, "train_loss")[-1] < _lines(alone, "train_loss")[0]
    one, two = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (alone, shared))
    assert {key: (v.shape, v.dtype) for key, v in one.items()} == {key: (v.shape, v.dtype) for key, v in two.items()}
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < NUMBERS


@pytest.mark.parametrize(
    ("word", "sharded", "do"),
    [("int8", True, "nf4, or distributed=ddp"), ("torchao-int8", True, "nf4"), ("torchao-int8", False, "nf4")],
)
def test_a_base_that_cannot_be_shared_is_refused_by_its_layer(
    word: str, sharded: bool, do: str, tmp_path: Path
) -> None:
    if not _installed(WHILE_LOADING[word][0]):
        pytest.skip(f"{WHILE_LOADING[word][0]} is not here")
    model: Any = load_model(str(save_model(tmp_path / "model")), torch.float32, word)
    with pytest.raises(RecipeError, match=rf"layers\.0\.self_attn\.q_proj.*no way to share.*quantization={do}"):
        check_shared_base(model, sharded=sharded)
    if word == "int8":
        check_shared_base(model, sharded=False)
