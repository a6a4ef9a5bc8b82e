"""How verbs end when they fail: words on stderr, a status, a traceback only when asked for."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from orthotune.cli.failures import explain
from orthotune.cli.verbs import Verbs
from orthotune.errors import DataError


def _run(error: BaseException, *words: str) -> Result:
    app = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)

    @app.callback()
    def options(debug: bool = typer.Option(False, "--debug")) -> None:
        pass

    @app.command("fail")
    def fail() -> None:
        raise error

    return CliRunner().invoke(app, [*words, "fail"])


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (DataError("data x.jsonl", got="no rows"), 2, "data x.jsonl. Found: no rows."),
        (KeyboardInterrupt(), 130, "Stopped."),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/a"), 2, "The disk is full: runs/a"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x"), 2, "/x may not be written"),
        (FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "y.json"), 2, "y.json does not exist"),
        (OSError("no such model on the hub"), 2, "no such model on the hub"),
        (ModuleNotFoundError("No module named 'trl'", name="trl.trainer"), 2, "pip install 'orthotune[text]'"),
        (ModuleNotFoundError("No module named 'optimum.quanto'", name="optimum.quanto"), 2, "orthotune[quant-quanto]"),
        (ImportError("A valid HQQ version (>=0.2.1) is not available."), 2, "orthotune[quant-hqq]"),
        (ImportError("Loading it requires optimum-quanto library"), 2, "orthotune[quant-quanto]"),
        (ImportError("It needs a thing that nobody named"), 2, "It needs a thing that nobody named"),
        (ImportError("cannot import name 'x' from 'hqq'", name="hqq"), 1, "ImportError: cannot import name"),
        (ModuleNotFoundError("No module named 'zzz'", name="zzz"), 1, "ModuleNotFoundError: No module named 'zzz'"),
        (RuntimeError("odd"), 1, "RuntimeError: odd\nRun the same command with --debug"),
        (typer.Exit(3), 3, ""),
    ],
)
def test_failure_is_words_and_a_status(error: BaseException, status: int, words: str) -> None:
    done = _run(error)
    assert done.exit_code == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_where(call: Callable, place: str) -> None:
    words = ["inspect", "no/such/adapter"]
    done = call("--debug", *words) if place == "before" else call(*words, "--debug")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "There is no adapter at" in done.stderr


def test_wrong_command_line_is_left_to_typer(call: Callable) -> None:
    done = call("inspect")
    assert done.exit_code == 2
    assert "Missing argument" in done.stderr


def test_words_come_without_the_package_being_loaded() -> None:
    assert explain(ValueError("x"))[1] == 1


@pytest.mark.parametrize(
    ("method", "package"),
    [("hqq", "hqq"), ("awq", "gptqmodel"), ("aqlm", "aqlm"), ("quanto", "optimum.quanto"), ("torchao", "torchao")],
)
def test_a_quantized_checkpoint_without_its_library(call: Callable, trained: Path, method: str, package: str) -> None:
    """The words come from transformers itself, where the library is not installed."""
    try:
        __import__(package)
        pytest.skip(f"{package} is here")
    except ImportError:
        pass
    config = json.loads((trained / "base/config.json").read_text())
    quantization = {"quant_method": method, "bits": 4, "group_size": 8, "quant_type": "int8_weight_only"}
    (trained / "base/config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    done = call("merge", trained / "adapter", "--base", trained / "base", "--out", trained / "merged")
    assert done.exit_code == 2, done.stderr
    assert "pip install 'orthotune[quant-" in done.stderr and "Traceback" not in done.stderr
    assert not (trained / "merged").exists()
