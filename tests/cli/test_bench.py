"""``orthotune bench``: the table appears, and the path of each kernel has a reason."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from harness.cells import SELECTIONS as KNOWN
from harness.results import read_rows
from orthotune.cli.bench import SELECTIONS


def test_help_names_every_selection() -> None:
    assert SELECTIONS.replace(" or ", ", ").split(", ") == list(KNOWN)


@pytest.fixture
def threads() -> Iterator[None]:
    """What a verb sets for its process, a test gives back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_a_small_run_leaves_a_table_and_a_picture(call: Callable[..., Result], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = call("bench", "smoke", "--threads", 1, "--repetitions", 1, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    (table,) = (tmp_path / "out").glob("smoke-*.csv")
    rows = read_rows(table)
    assert len(json.loads(done.stdout)) == len(rows) == 12
    assert {row.threads for row in rows} == {1}
    assert table.with_suffix(".png").is_file()
    assert "llama 128/8 train" in done.stderr


def test_explain_says_why(call: Callable[..., Result]) -> None:
    done = call("bench", "--explain", "--json")
    assert done.exit_code == 0
    rows = json.loads(done.stdout)
    assert {row["operation"] for row in rows} == {"from_parameters", "rotate"}
    on_cpu = [row for row in rows if row["device"] == "cpu"]
    assert {row["why"] for row in on_cpu} == {"Triton kernels need a GPU"}
    assert all(row["block_sizes"] == [8, 16, 32, 64, 128, 256] for row in on_cpu)
    plain = call("bench", "--explain").stdout
    assert len(plain.split("\n\n")[0].splitlines()) == len(rows) and "plan: input" in plain


def test_an_unknown_selection(call: Callable[..., Result]) -> None:
    done = call("bench", "tarjets")
    assert done.exit_code == 2
    assert "Did you mean targets?" in done.stderr


@pytest.mark.usefixtures("threads")
def test_adapters_in_one_batch(call: Callable[..., Result], tmp_path: Path) -> None:
    words = ("--repetitions", 1, "--threads", 1, "--hidden", 64, "--adapters", "1,4")
    done = call("bench", "adapters", *words, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    (table,) = (tmp_path / "out").glob("adapters-*.csv")
    with table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # two numbers of adapters, two lengths of rows, three contenders
    assert len(rows) == 12 == len(done.stdout.splitlines())
    assert {(row["adapters"], row["rows"], row["tokens"]) for row in rows} == {
        (count, "64", tokens) for count in ("1", "4") for tokens in ("1", "32")
    }
    assert {row["contender"] for row in rows} == {"frozen", "lora", "orthotune"}
    assert all(float(row["tokens_per_second"]) > 0 for row in rows)
    assert all(float(row["time_ratio"]) == 1 for row in rows if row["contender"] == "frozen")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("adapters", "--adapters", "0,4"), "numbers from 1 to 64"),
        (("adapters", "--adapters", "few"), "numbers from 1 to 64"),
        (("adapters", "--hidden", "100"), "multiple of 32"),
        (("targets", "--adapters", "4"), "orthotune bench adapters"),
    ],
)
def test_wrong_words_for_adapters(
    call: Callable[..., Result], tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = call("bench", *words, "--out", tmp_path / "out")
    # the terminal may break the line
    assert done.exit_code == 2 and said in " ".join(done.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_a_wheel_says_where_the_benchmark_is(
    call: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = tmp_path / "lib" / "site-packages" / "orthotune" / "__init__.py"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None, origin=str(origin)))
    for words in (("smoke",), ("adapters", "--hidden", 64)):
        done = call("bench", *words, "--out", tmp_path / "out")
        assert done.exit_code == 2 and "a clone of orthotune's repository" in done.stderr
        assert "Run make bench in the clone" in done.stderr and not (tmp_path / "out").exists()
