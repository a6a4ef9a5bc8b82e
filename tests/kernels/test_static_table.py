"""The table of the static check is that of the present kernels, and a few of them are compiled anew for four cards."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import gpu_static
from orthotune.kernels import tiles
from orthotune.kernels.cards import CARDS
from tests.support.source import ROOT
from tests.support.static_rows import faults

TABLE = ROOT / "benchmarks" / "results" / "gpu-static.csv"
AGAIN = "python benchmarks/gpu_static.py --out benchmarks/results/gpu-static.csv"
ROWS = gpu_static.read(TABLE)
SCRIPT = Path(gpu_static.__file__)


def _script(*words: str) -> subprocess.CompletedProcess[str]:
    """The script in a process of its own: here Triton's kernels run in its interpreter."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_the_table_has_every_kernel_that_is_selected_for_a_card(name: str) -> None:
    own = {row.signature for row in ROWS if row.architecture == name}
    planned = [row for row, _ in gpu_static.planned(CARDS[name])]
    missing = [row for row in planned if row.signature not in own]
    assert len(planned) > 5 and not missing, f"a kernel or a tile has changed: {AGAIN}"


def test_the_table_has_no_kernel_of_an_earlier_version() -> None:
    planned = {(name, row.signature) for name in CARDS for row, _ in gpu_static.planned(CARDS[name])}
    assert {(row.architecture, row.signature) for row in ROWS} == planned, AGAIN


def test_float32_inputs_are_not_rotated_by_a_kernel_that_spills() -> None:
    case = gpu_static.Case("_features", "rotate", 32, "float32")
    assert not case.selected(CARDS["gfx1100"]) and case.selected(CARDS["gfx90a"])


def test_odd_large_blocks_of_16_bits_are_not_rotated_by_a_kernel_that_spills() -> None:
    for name, size, dtype, selected in (
        ("sm_89", 100, "bfloat16", False), ("sm_89", 40, "float16", False), ("sm_89", 100, "float32", True),
        ("sm_89", 96, "bfloat16", True), ("sm_89", 24, "bfloat16", True), ("gfx942", 100, "bfloat16", True),
    ):  # fmt: skip
        for kernel in ("_rotate", "_back", "_features"):
            assert gpu_static.Case(kernel, "rotate", size, dtype).selected(CARDS[name]) is selected


def test_no_kernel_of_the_table_spills_or_is_larger_than_its_card() -> None:
    assert ROWS and not faults([row for row in ROWS if row.selected])


def test_a_fault_is_seen() -> None:
    row = next(row for row in ROWS if row.selected)
    stated = tiles.shared_memory(row.operation, 4, 32)
    for change in ({"spilled": 8}, {"parked": 260}, {"shared": stated + (200 << 10)}, {"shared": None},
                   {"error": "PassManager::run failed"}):  # fmt: skip
        assert faults([replace(row, **change)])


def test_scalar_registers_in_lanes_are_no_spill_and_those_in_memory_are() -> None:
    code = """
    v_writelane_b32 v3, s4, 0
    .private_segment_fixed_size: {memory}
    .sgpr_spill_count: {scalars}
    .vgpr_count:     47
    .vgpr_spill_count: {vectors}
    """

    def read(memory: int, scalars: int, vectors: int) -> tuple[int | None, int | None]:
        row = replace(next(row for row in ROWS if row.architecture == "gfx90a"), spilled=None)
        gpu_static._read_amd(code.format(memory=memory, scalars=scalars, vectors=vectors), row)
        return row.spilled, row.parked

    assert read(0, 0, 0) == (0, 0) and read(0, 1, 0) == (0, 4)
    assert read(16, 0, 0) == (16, 0) and read(0, 0, 2) == (8, 0)
    assert read(0, 3, 0) == (8, 12)  # two of three are in no lane


def test_another_tile_is_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    before = gpu_static.launch(gpu_static.Case("_rotate", "rotate", 32, "bfloat16")).signature
    monkeypatch.setattr(tiles, "rotate_tiles", lambda *_: tiles.Tiles(32, 32, 32, 4, 2, 48 << 10))
    assert gpu_static.launch(gpu_static.Case("_rotate", "rotate", 32, "bfloat16")).signature != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--blocks", "x"], "'x': give sizes from 2 to 256 with commas between them, such as 16,32,48"),
        (["--blocks", "16,,32"], "give sizes from 2 to 256"),
        (["--blocks", "512"], "'512': give sizes from 2 to 256"),
        (["--blocks=-8"], "'-8': give sizes from 2 to 256"),
        (["--cards", "gtx"], "'gtx': give some of sm_75, sm_80"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_in_words(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_static.py", *words])
    with pytest.raises(SystemExit) as ended:
        gpu_static.main()
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kernels_of_usual_blocks_compile_for_four_cards_and_are_taken_from_the_table_again(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the compiler of the kernels, Triton, is not installed")
    words = ["--cards", "sm_80,sm_86,sm_90,sm_120", "--blocks", "32", "--out", str(tmp_path / "found.csv")]
    first = _script(*words)
    assert first.returncode == 0, first.stderr
    rows = gpu_static.read(tmp_path / "found.csv")
    assert len(rows) > 60 and {row.architecture for row in rows} == {"sm_80", "sm_86", "sm_90", "sm_120"}
    assert not faults(rows) and max(row.seconds or 0.0 for row in rows) < 2 * gpu_static.SECONDS
    assert "| sm_86 | " in first.stdout
    # What is there is not compiled again: the same seconds.
    again = _script(*words)
    assert again.returncode == 0 and gpu_static.read(tmp_path / "found.csv") == rows
