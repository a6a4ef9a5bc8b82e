"""The static check sees every kernel that is launched, and every cut fits the least of the cards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gpu_static
from orthotune.kernels import tiles
from orthotune.kernels.cards import CARDS, LEAST

KERNELS = Path(tiles.__file__).parent
LAUNCHED = re.compile(r"^ +(_\w+)\[", flags=re.MULTILINE)


def test_every_kernel_that_is_launched_is_compiled_by_the_static_check() -> None:
    launched = {name for path in KERNELS.glob("triton_*.py") for name in LAUNCHED.findall(path.read_text())}
    assert launched == {case.kernel for case in gpu_static.cases()} and len(launched) == 7


@pytest.mark.parametrize("operation", ["from_parameters", "rotate", "rotate_tokens"])
def test_what_kernels_need_is_what_every_card_gives(operation: str) -> None:
    for size in range(2, 257):
        for item in (2, 4):
            assert (
                tiles.shared_memory(operation, item, size)
                <= LEAST.shared
                <= min(card.shared for card in CARDS.values())
            )


def test_blocks_in_float32_whose_gradient_would_spill_have_fewer_rows() -> None:
    rows = {size: tiles.input_gradient_tiles(4, size).rows for size in (8, 16, 17, 24, 31, 32, 48, 100)}
    assert {size for size, count in rows.items() if count == 16} == {17, 24, 31}
    assert tiles.input_gradient_tiles(2, 24).rows == 64


def test_a_tile_holds_its_block() -> None:
    for size in range(2, 257):
        assert tiles.width(size) // 2 < max(size, 9) <= max(tiles.width(size), 16)
