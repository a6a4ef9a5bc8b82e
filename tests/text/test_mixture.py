"""Sets mixed by weight: shares as asked, the same rows for the same seed, nothing lost or repeated unless stated."""

from __future__ import annotations

from collections import Counter

import pytest

from orthotune.errors import DataError
from orthotune.text.data import Examples
from orthotune.text.mixture import MOST_REPEATS, Stop, mixed, rows_of_sets


def _set(name: str, size: int, format: str = "text") -> Examples:
    places = tuple(f"{name}, line {n}" for n in range(1, size + 1))
    return Examples(
        [{"text": f"{name}{n}"} for n in range(size)], format, name, 1, (f"id_{name}",), places, (f"form: {name}.",)
    )


@pytest.mark.parametrize(
    ("sizes", "weights", "stop", "counts"),
    [
        ((100, 100), (0.7, 0.3), "first", [100, 42]),
        ((70, 30), (0.7, 0.3), "first", [70, 30]),
        ((70, 30), (7, 3), "last", [70, 30]),
        ((100, 10), (1, 1), "first", [10, 10]),
        ((100, 10), (1, 1), "last", [100, 100]),
        ((7, 5, 11), (0.1, 0.2, 0.7), "first", [1, 3, 11]),
        ((7, 5, 11), (0.1, 0.2, 0.7), "last", [7, 14, 49]),
    ],
)
def test_rows_of_each_set(sizes: tuple[int, ...], weights: tuple[float, ...], stop: Stop, counts: list[int]) -> None:
    assert rows_of_sets(sizes, weights, stop) == counts
    sets = [_set("abc"[n], size) for n, size in enumerate(sizes)]
    found = mixed(sets, weights, stop, seed=3)
    assert [Counter(row["text"][0] for row in found.rows)["abc"[n]] for n in range(len(sizes))] == counts
    times = Counter(row["text"] for row in found.rows)
    for one, size, count in zip(sets, sizes, counts, strict=True):
        seen = [times[row["text"]] for row in one.rows]
        # Every row as often as any other of its set, or once more.
        assert sum(seen) == count and set(seen) <= {count // size, -(-count // size)}
    assert all(place == f"{row['text'][0]}, line {int(row['text'][1:]) + 1}"
               for row, place in zip(found.rows, found.places, strict=True))  # fmt: skip


def test_a_mixture_is_that_of_its_seed() -> None:
    sets = [_set("a", 50), _set("b", 20)]
    first, again, other = (mixed(sets, [1, 2], seed=seed) for seed in (1, 1, 2))
    assert first == again and first.rows != other.rows
    assert Counter(row["text"][0] for row in first.rows) == Counter(row["text"][0] for row in other.rows)


def test_a_mixture_keeps_what_is_known_of_its_sets() -> None:
    found = mixed([_set("a", 50), _set("b", 20, "messages")], [0.2, 0.7], "last")
    assert (found.format, found.source, found.blank, found.unused) == ("mixed", "a + b", 2, ("id_a", "id_b"))
    assert found.notes[:2] == ("form: a.", "form: b.")
    assert found.notes[2] == (
        "mixture: 225 rows, 22.2% a (50 rows); 77.8% b (175 rows, each 8.8 times). "
        "The weights add up to 0.9 and are relative to that."
    )


def test_weights_that_nobody_means() -> None:
    with pytest.raises(DataError, match="the weight of 'b'. Found: a share of less than one row"):
        mixed([_set("a", 10), _set("b", 1000)], [99, 1])
    with pytest.raises(DataError, match=f"weight of 'b'. Found: its 3 rows would be .*at most {MOST_REPEATS} times"):
        mixed([_set("a", 1000), _set("b", 3)], [1, 1], "last")
