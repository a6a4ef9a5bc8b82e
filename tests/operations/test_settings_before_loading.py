"""Settings of export, convert, merge and combine that no adapter and no base could fulfil are refused unread.

The adapter and the base of these calls do not exist: a call that looks for one of them first has another message.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import OrthotuneError
from orthotune.operations.combine import combine
from orthotune.operations.convert import convert
from orthotune.operations.export import export
from orthotune.operations.merge import merge

GONE = Path("no/such/adapter")
#: What every verb is called with here; a case replaces some of it.
CALLS: dict[Callable[..., Any], dict[str, Any]] = {
    export: {"adapter": GONE, "out": "out", "base": "no/such/base", "to": "lora", "rank": 4},
    convert: {"adapter": GONE, "out": "out.safetensors", "to": "comfyui"},
    merge: {"adapter": GONE, "out": "out", "base": "no/such/base"},
    combine: {"adapters": [GONE, GONE], "weights": [1.0, 1.0], "out": "out"},
}
LORA, GGUF = {"to": "lora", "rank": None}, {"to": "gguf", "rank": None}
SVD = {"combination_type": "svd_lora", "base": "no/such/base"}
#: Verb, setting, the value with what it needs beside it, and what the message says.
Case = tuple[Callable[..., Any], str, dict[str, Any], str]
CASES: list[Case] = [
    (export, "to", {"to": "onnx"}, "--to onnx. Needed: dense, lora, diff or gguf"),
    *((export, "error", {**LORA, "error": error}, f"--error {error:g}. Needed: a relative error from 0 to below 1")
      for error in (3.0, 1.0, -0.1, math.nan, math.inf)),
    (export, "error", {"to": "dense", "rank": None, "error": 0.1}, "--rank or --error with lora, and only with lora"),
    (export, "rank", {"rank": 0}, "--rank 0. Needed: at least 1"),
    (export, "rank", {"to": "diff", "rank": 4}, "--rank or --error with lora, and only with lora"),
    (export, "rank", {"rank": None}, "--rank or --error with lora"),
    (export, "gguf_type", {**GGUF, "gguf_type": "q4_0"}, "--gguf-type q4_0. Needed: f16 or bf16 or q8_0"),
    (export, "gguf_type", {"gguf_type": "f16"}, "--gguf-type and --converter only with gguf"),
    (export, "converter", {**GGUF, "converter": "no/such"}, "--converter no/such. Needed: convert_hf_to_gguf.py"),
    (export, "converter", {"converter": "no/such"}, "--gguf-type and --converter only with gguf"),
    (export, "out", {"out": "full"}, "full. Found: a folder that is not empty"),
    (export, "out", {"out": "taken.safetensors"}, "taken.safetensors. Found: a file. Needed: a folder"),
    (export, "out", {"to": "diff", "rank": None}, "OUT out. Needed: a file name that ends in .safetensors"),
    (export, "base", {"base": "text-wrld"}, "there is no base model at text-wrld. Did you mean text-world?"),
    (export, "base", {}, "there is no base model at no/such/base. Check the path"),
    (merge, "out", {"out": "full"}, "full. Found: a folder that is not empty"),
    (combine, "out", {"out": "full"}, "full. Found: a folder that is not empty"),
    (convert, "to", {"to": "comfy"}, "--to comfy. Needed: one of"),
    (convert, "base", {"to": "diff"}, "--to diff. Needed: the weights of the base"),
    (convert, "out", {"out": "out.bin"}, "OUT out.bin. Needed: a file name that ends in .safetensors"),
    (convert, "out", {"out": "taken.safetensors"}, "OUT taken.safetensors. Found: an existing file"),
    (convert, "out", {"out": "full", "to": "peft"}, "full. Found: a folder that is not empty"),
    (convert, "out", {"out": "taken.safetensors", "to": "peft", "overwrite": True}, "Found: a file. Needed: a folder"),
    (convert, "out", {"out": "full", "to": "diff", "base": "no/such"}, "OUT full. Found: a folder"),
    (merge, "dtype", {"dtype": "float8"}, "--dtype float8. Needed: auto or float32"),
    (merge, "dtype", {"dtype": "float32", "stream": True}, "stream=True with dtype"),
    (merge, "dequantize", {"dequantize": True, "stream": True}, "stream=True with dtype, dequantize or"),
    (merge, "quantization", {"quantization": "nf5"}, "quantization=nf5. Needed: one of nf4"),
    (combine, "rank", {**SVD, "rank": 0}, "--rank 0. Needed: at least 1"),
    (combine, "rank", {"rank": 4}, "--base and --rank with svd_lora, and only with svd_lora"),
    (combine, "base", {"base": "b"}, "--base and --rank with svd_lora, and only with svd_lora"),
    (combine, "combination_type", {"combination_type": "mean"}, "combination_type='mean'. Needed: geodesic"),
    (combine, "weights", {"weights": [1.0]}, "1 weights for 2 adapters. Needed: one weight for each"),
    (combine, "weights", {"weights": [1.0, math.nan]}, "Needed: one finite number for each adapter"),
    (combine, "weights", {**SVD, "rank": 4, "weights": [1.0, math.inf]}, "Needed: one finite number for each adapter"),
    (combine, "density", {"density": 0.5}, "a share with ties, and only with ties"),
    (combine, "density", {"combination_type": "ties", "density": 1.5}, "density=1.5. Needed: above 0, at most 1"),
    (combine, "magnitude_correction", {"magnitude_correction": True}, "Needed: tangent or ties"),
    *((verb, "strength", {"strength": strength}, f"--strength {strength}. Needed: a finite number")
      for verb in (export, merge) for strength in (math.nan, math.inf, "full", True)),
    *((verb, "kind", {"kind": "cubic"}, "kind='cubic'. Needed: geodesic or linear or rotation")
      for verb in (export, merge)),
    *((verb, "options", option, words)
      for verb in (export, convert, merge)
      for option, words in (
          ({"series": "new"}, "--series new. Needed: current or legacy"),
          ({"project": "x"}, "--project x. Needed: oft-control or oft-db"),
          ({"boft_conv": "x"}, "--boft-conv x. Needed: rows or scrambled"),
          ({"eps": 0.0}, "--eps 0. Needed: a radius above 0"),
          ({"eps": math.nan}, "--eps nan. Needed: a radius above 0"),
      )),
]  # fmt: skip
#: Settings of which every value may be right: it depends on what is read, or either way is one.
OPEN = {
    export: {"adapter", "strict", "overwrite", "on_report", "on_layer", "progress"},
    convert: {"adapter", "dry_run", "approximate", "linear", "overwrite", "progress"},
    merge: {"adapter", "base", "stream", "overwrite", "progress"},
    combine: {"adapters", "overwrite"},
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[1]}-{case[3][:24]}")
def test_it_is_refused_before_anything_is_read(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.safetensors").write_bytes(b"mine")
    Path("full").mkdir()
    Path("full", "mine").write_bytes(b"mine")
    before = sorted(tmp_path.rglob("*"))
    verb, _, given, words = case
    with pytest.raises(OrthotuneError) as refused:
        verb(**{**CALLS[verb], **given})
    assert words in str(refused.value)
    assert sorted(tmp_path.rglob("*")) == before and Path("full", "mine").read_bytes() == b"mine"


@pytest.mark.parametrize("verb", CALLS, ids=lambda verb: verb.__name__)
def test_every_setting_has_a_case_or_is_open(verb: Callable[..., Any]) -> None:
    tried = {setting for own, setting, _, _ in CASES if own is verb}
    assert not tried & OPEN[verb]
    assert tried | OPEN[verb] == set(inspect.signature(verb).parameters)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to", "lora", "--error", "3"], "--error 3. Needed: a relative error from 0 to below 1"),
        (["--to", "lora", "--error", "nan"], "--error nan. Needed: a relative error"),
        (["--to", "lora", "--rank", "4", "--held-out", "no/such.jsonl"], "no/such.jsonl"),
        (["--to", "dense", "--held-out", "text-world/old_test"], "--held-out is for --to lora"),
        (["--to", "dense", "--strength", "nan"], "--strength nan. Needed: a finite number"),
    ],
)
def test_the_command_refuses_before_the_base_is_looked_for(words: list[str], said: str, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from orthotune.cli.main import app

    line = ["export", str(GONE), str(tmp_path / "out"), "--base", str(tmp_path / "gone"), *words]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 2 and said in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_held_out_texts_and_a_base_that_writes_none(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from orthotune.cli.main import app

    base = tmp_path / "pipeline"
    base.mkdir()
    (base / "model_index.json").write_text("{}")
    line = ["export", str(GONE), str(tmp_path / "out"), "--base", str(base), "--to", "lora", "--rank", "4"]
    done = CliRunner().invoke(app, [*line, "--held-out", "text-world/old_test"])
    assert done.exit_code == 2 and "which is no language model. Needed: a folder of transformers" in done.stderr
