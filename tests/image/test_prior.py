"""Class pictures beside the subject's."""

from __future__ import annotations

import pytest
import torch

from orthotune.errors import DataError
from orthotune.image.adapter.prior import WithPrior
from orthotune.image.data.batch import Batch


class Numbers:
    """Pictures that are their own number, from ``first`` on."""

    def __init__(self, count: int, first: int, size: tuple[int, int] = (8, 8)) -> None:
        self.count, self.first, self.size = count, first, size

    def __len__(self) -> int:
        return self.count

    def bucket(self, index: int) -> tuple[int, int]:
        return self.size

    def batch(self, indices: list[int]) -> Batch:
        values = torch.tensor([float(self.first + index) for index in indices])[:, None, None, None]
        return Batch(values, [str(index) for index in indices], {"words": values[..., 0]}, torch.ones(len(indices)))


def test_a_batch_holds_as_many_of_both_and_its_mean_is_dreambooths_loss() -> None:
    data = WithPrior(Numbers(3, 0), Numbers(5, 100), weight=0.5)
    assert len(data) == 5 and data.bucket(4) == (8, 8)
    batch = data.batch([1, 4, 4])
    assert batch.latents.flatten().tolist() == [1, 1, 1, 101, 104, 104]
    assert batch.captions == ["1", "1", "1", "1", "4", "4"]
    assert batch.conditions is not None and torch.equal(batch.conditions["words"], batch.latents[..., 0])
    losses = torch.tensor([3.0, 4.0, 5.0, 10.0, 20.0, 60.0])
    assert (losses * batch.weight).mean() == 4.0 + 0.5 * 30.0


@pytest.mark.parametrize(
    ("classes", "words"),
    [(Numbers(2, 0, (8, 16)), "sizes 8 x 8, 16 x 8.*buckets=false"), (Numbers(0, 0), "no images in one")],
)
def test_pictures_that_cannot_share_a_batch(classes: Numbers, words: str) -> None:
    with pytest.raises(DataError, match=words):
        WithPrior(Numbers(3, 0), classes)
