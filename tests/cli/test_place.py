"""What a command calls the place that it writes to, and which place is free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from orthotune.cli.demo import free_folder


def test_free_folder_counts_up(tmp_path: Path) -> None:
    wanted = tmp_path / "demo"
    assert free_folder(wanted) == wanted
    wanted.mkdir()
    assert free_folder(wanted) == wanted, "an empty folder is free"
    (wanted / "a").write_text("new")
    (tmp_path / "demo-2").write_text("a file")
    assert free_folder(wanted) == tmp_path / "demo-3"


def test_a_place_is_called_as_its_verb_calls_it(call: Callable, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    done = call("convert", trained / "adapter", tmp_path / "taken", "--to", "peft")
    assert done.exit_code == 2 and f"OUT {tmp_path / 'taken'}" in done.stderr and "--out" not in done.stderr
    done = call("combine", trained / "adapter", "--out", tmp_path / "taken")
    assert done.exit_code == 2 and f"--out {tmp_path / 'taken'}" in done.stderr
