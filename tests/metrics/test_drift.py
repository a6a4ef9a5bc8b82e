"""Drift is nothing for an adapter that does nothing, and what its definition says for one that does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PretrainedConfig

from orthotune.errors import DataError
from orthotune.metrics.drift import text_drift
from orthotune.metrics.image_drift import image_drift
from orthotune.metrics.text_loss import TokenRow


class _Fixed(nn.Module):
    """A model whose next token depends on the present one alone."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table, self.config = nn.Parameter(table), PretrainedConfig(vocab_size=3)

    def forward(self, input_ids: torch.Tensor, **_: object) -> object:
        return type("Output", (), {"logits": self.table[input_ids]})


def test_divergence_of_two_known_distributions() -> None:
    base, moved = torch.tensor([[0.5, 0.25, 0.25]] * 3).log(), torch.tensor([[0.25, 0.5, 0.25]] * 3).log()
    rows = [TokenRow([0, 1, 2], [0, 1, -100]), TokenRow([2, 0], [2, 0])]
    found = text_drift(_Fixed(moved), rows, base=_Fixed(base))
    # KL = 1/2 log 2 + 1/4 log 1/2; two tokens are counted, both choose differently
    assert found.kl == pytest.approx(0.25 * torch.tensor(2.0).log().item(), rel=1e-5)
    assert found.kl_largest == pytest.approx(found.kl, rel=1e-5)
    assert (found.same_choice, found.tokens) == (0, 2)
    same = text_drift(_Fixed(base), rows, base=_Fixed(base))
    assert (same.kl, same.same_choice) == (0, 1)
    with pytest.raises(ValueError, match="no token"):
        text_drift(_Fixed(base), [TokenRow([0, 1], [-100, -100])], base=_Fixed(base))


def test_pictures_that_are_the_same_have_not_moved() -> None:
    pictures = torch.randint(256, (5, 3, 8, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = image_drift(pictures, pictures.clone(), lambda x: x.float())
    assert (found.pixels, found.features, found.features_largest, found.pictures) == (0, 0, 0, 5)
    assert found.unrelated is not None and found.unrelated > 0


def test_pixels_and_features_are_what_they_are_called() -> None:
    before = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    before[0, 0], before[1, 1] = 200, 200
    after = before.clone()
    after[0] = before[1]  # the first picture became the second one
    found = image_drift(before, after, lambda x: x.float().mean((2, 3)))
    assert found.pixels == pytest.approx((200 + 200) / 3 / 2 / 255)
    # one picture's features are at right angles to what they were, the other's where they were
    assert (found.features, found.features_largest) == (pytest.approx(0.5), pytest.approx(1))
    assert found.unrelated == pytest.approx(1)
    alone = image_drift(before[:1], after[:1])
    assert (alone.features, alone.unrelated, alone.pictures) == (None, None, 1)


@pytest.mark.parametrize("other", [torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 5), torch.zeros(0, 3, 4, 4)])
def test_pictures_that_do_not_belong_together(other: torch.Tensor) -> None:
    with pytest.raises(DataError, match="images to compare"):
        image_drift(torch.zeros(2, 3, 4, 4) if len(other) else other, other)
