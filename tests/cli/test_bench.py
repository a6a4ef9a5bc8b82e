"""``orthotune bench``: the table appears, and the path of each kernel has a reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import Result

from orthotune.bench.cells import SELECTIONS as KNOWN
from orthotune.bench.results import read_rows
from orthotune_cli.bench import SELECTIONS


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
    assert len(plain.splitlines()) == len(rows)


def test_an_unknown_selection(call: Callable[..., Result]) -> None:
    done = call("bench", "tarjets")
    assert done.exit_code == 2
    assert "Did you mean targets?" in done.stderr
