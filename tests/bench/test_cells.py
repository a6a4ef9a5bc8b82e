"""The selections hold what they promise."""

from __future__ import annotations

import pytest

from harness.cells import BLOCKS, MEANING, SELECTIONS, TARGETS, Cell, selection, target_of
from harness.llama import intermediate
from orthotune.errors import OrthotuneError


def test_targets_are_the_published_ones() -> None:
    assert {(c.hidden, c.tokens, c.mode): limit for c, limit in TARGETS.items()} == {
        (1024, 128, "train"): 1.20,
        (1024, 512, "train"): 1.08,
        (2048, 512, "train"): 1.05,
        (1024, 1, "decode"): 1.10,
    }
    assert {(c.dtype, c.block_size, c.layers) for c in TARGETS} == {("bfloat16", 32, 3)}


def test_a_target_belongs_to_its_device() -> None:
    wide = selection("gpu")[0]
    assert target_of(wide, "cuda") == 1.05
    assert target_of(wide, "cpu") is None
    assert target_of(Cell(), "cuda") is None


@pytest.mark.parametrize("name", SELECTIONS)
def test_no_cell_twice_and_every_block_fits(name: str) -> None:
    cells = selection(name)
    assert len(set(cells)) == len(cells)
    assert name in MEANING
    for cell in cells:
        assert cell.tokens == 1 or cell.mode != "decode"
        if cell.model == "llama":
            assert cell.hidden % cell.block_size == 0
            assert intermediate(cell.hidden) % cell.block_size == 0


def test_growth_varies_one_thing_at_a_time() -> None:
    varied = {"tokens": 4, "hidden": 3, "layers": 4, "block_size": len(BLOCKS)}
    for field, count in varied.items():
        others = [name for name in (*varied, "dtype") if name != field]
        line = [c for c in selection("growth") if all(getattr(c, n) == getattr(Cell(), n) for n in others)]
        assert len({getattr(c, field) for c in line}) == count


def test_an_unknown_selection_is_told_in_words() -> None:
    with pytest.raises(OrthotuneError, match="selection 'target'.*Did you mean targets?"):
        selection("target")
