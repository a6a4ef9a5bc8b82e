"""Which pictures a step sees."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orthotune.image.loop.order import Order

BUCKETS = st.lists(st.sampled_from([(16, 16), (16, 24), (24, 16)]), min_size=1, max_size=13)


@given(buckets=BUCKETS, size=st.integers(1, 5), seed=st.integers(0, 3), processes=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_an_epoch_shows_every_picture_in_batches_of_one_size(
    buckets: list[tuple[int, int]], size: int, seed: int, processes: int
) -> None:
    order = Order(buckets, size, seed, processes)
    for epoch in range(2):
        first = epoch * order.per_epoch
        places = [divmod(number, processes) for number in range(first, first + order.per_epoch)]
        batches = [order.indices(step, process) for step, process in places]
        assert all(len(batch) == size and len({buckets[index] for index in batch}) == 1 for batch in batches)
        seen = Counter(index for batch in batches for index in batch)
        assert set(seen) == set(range(len(buckets)))
        # Filling up takes each picture of a bucket again before it takes one a third time.
        for bucket in set(buckets):
            counts = [seen[index] for index, own in enumerate(buckets) if own == bucket]
            assert max(counts) - min(counts) <= 1


@given(buckets=BUCKETS, steps=st.lists(st.integers(0, 60), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_step_is_the_same_whatever_was_asked_before(buckets: list[tuple[int, int]], steps: list[int]) -> None:
    asked = Order(buckets, 2, seed=5)
    for step in steps:
        assert asked.indices(step) == Order(buckets, 2, seed=5).indices(step)


@pytest.mark.parametrize("other", [{"seed": 1}, {"epoch": 1}])
def test_seeds_and_epochs_differ(other: dict[str, int]) -> None:
    buckets = [(8, 8)] * 24
    one, two = Order(buckets, 4, seed=0), Order(buckets, 4, seed=other.get("seed", 0))
    first = other.get("epoch", 0) * one.per_epoch
    assert [one.indices(n) for n in range(6)] != [two.indices(first + n) for n in range(6)]
