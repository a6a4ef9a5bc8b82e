"""How a dimension is cut."""

from __future__ import annotations

from typing import Any

import pytest

from orthotune.errors import BlockSizeError
from orthotune.rotation.blocks import BlockLayout, choose_layout, divisors, nearest_divisor


def _choose(
    features: int, *, r: int = 0, block_size: int = 0, fallback: str = "error", **more: Any
) -> tuple[Any, bool]:
    options = {"shared": False, "layer": "q_proj"} | more
    return choose_layout(features, r=r, block_size=block_size, fallback=fallback, **options)


@pytest.mark.parametrize("features", [1, 2, 12, 36, 97, 100, 768, 4096])
def test_divisors_are_all_and_ascending(features: int) -> None:
    assert divisors(features) == [d for d in range(1, features + 1) if features % d == 0]


@pytest.mark.parametrize(
    ("features", "wanted", "expected"),
    # 24 and 5, 24 and 7, 24 and 10, 30 and 8 are ties
    [(24, 8, 8), (24, 5, 4), (24, 7, 6), (24, 10, 8), (30, 8, 6), (12, 5, 4), (100, 32, 25), (97, 32, 1), (97, 60, 97)],
)
def test_nearest_divisor_takes_the_smaller_on_a_tie(features: int, wanted: int, expected: int) -> None:
    assert nearest_divisor(features, wanted) == expected


def test_nearest_divisor_is_pefts_rule() -> None:
    """PEFT's search: walk up and down at once, the lower side first where both are as near."""
    for features in (24, 30, 72, 100, 768, 1000):
        for wanted in range(1, features + 1):
            higher = next(d for d in range(wanted, features + 1) if features % d == 0)
            lower = next(d for d in range(wanted, 0, -1) if features % d == 0)
            assert nearest_divisor(features, wanted) == (lower if wanted - lower <= higher - wanted else higher)


def test_sizes_that_fit() -> None:
    assert _choose(24, r=4) == (BlockLayout(6, 4), False)
    assert _choose(24, block_size=8) == (BlockLayout(8, 3), False)
    assert _choose(24, block_size=24, shared=True) == (BlockLayout(24, 1, True), False)


def test_layout_counts() -> None:
    layout = BlockLayout(8, 3)
    assert (layout.features, layout.rows, layout.shape) == (24, 3, (3, 28))
    shared = BlockLayout(8, 3, shared=True)
    assert (shared.features, shared.rows, shared.shape) == (24, 1, (1, 28))


def test_an_error_names_layer_numbers_and_the_sizes_that_do() -> None:
    with pytest.raises(BlockSizeError) as caught:
        _choose(100, block_size=32)
    assert str(caught.value) == (
        "block_size=32 does not divide the 100 features of layer 'q_proj'. Needed: one of [25, 20, 50] (the nearest "
        "that do). Pass one of them, give this layer its own size in block_size_pattern or rank_pattern, exclude the "
        'layer, or set block_size_fallback="nearest".'
    )
    with pytest.raises(
        BlockSizeError, match=r"r=7 does not divide the 24 features of layer 'q_proj'. Needed: one of \[6"
    ):
        _choose(24, r=7)
    with pytest.raises(BlockSizeError, match="block_size=48 does not divide the 24 features"):
        _choose(24, block_size=48)


def test_suggested_sizes_can_be_used() -> None:
    for features in (12, 97, 100):
        for name, wanted in (("block_size", 8), ("r", 7)):
            with pytest.raises(BlockSizeError) as caught:
                _choose(features, **{name: wanted})
            for size in eval(str(caught.value.needed).partition("of ")[2].partition(" (")[0]):
                assert not _choose(features, **{name: size})[1]


@pytest.mark.parametrize(
    ("features", "given", "expected"),
    [
        (24, {"block_size": 5}, BlockLayout(4, 6)),
        (24, {"r": 5}, BlockLayout(6, 4)),
        (24, {"block_size": 100}, BlockLayout(24, 1)),
        (72, {"block_size": 5}, BlockLayout(4, 18)),
    ],
)
def test_nearest_gives_way_and_says_so(features: int, given: dict[str, int], expected: BlockLayout) -> None:
    assert _choose(features, fallback="nearest", **given) == (expected, True)


@pytest.mark.parametrize("fallback", ["error", "nearest"])
@pytest.mark.parametrize("given", [{"r": 24}, {"block_size": 1}])
def test_blocks_of_one_have_nothing_to_turn(given: dict[str, int], fallback: str) -> None:
    with pytest.raises(BlockSizeError, match="blocks of size 1 in 24 features, which cannot be rotated"):
        _choose(24, fallback=fallback, **given)


def test_a_prime_width_has_no_near_block() -> None:
    with pytest.raises(BlockSizeError, match="layer 'q_proj'. Found: blocks of size 1 in 97 features"):
        _choose(97, block_size=32, fallback="nearest")
