"""What is special about embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthotune.errors import MergeError
from tests.support.layer_models import linear


def test_the_padding_row_stays_zero() -> None:
    model = linear(base=nn.Embedding(11, 8, padding_idx=2))
    assert not model(torch.tensor([2])).any()
    model.merge_adapter()
    assert not model(torch.tensor([2])).any()


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (2, 3, 4), (0,)])
def test_tokens_of_any_rank(shape: tuple[int, ...]) -> None:
    model = linear(base=nn.Embedding(11, 8), magnitude=True)
    assert model(torch.zeros(shape, dtype=torch.long)).shape == (*shape, 8)


def test_a_magnitude_scales_dimensions() -> None:
    model = linear(base=nn.Embedding(11, 8), trained=False, magnitude=True)
    layer = model.base_model.model.layer
    assert layer.oft_magnitude["default"].weight.shape == (8,)
    with torch.no_grad():
        layer.oft_magnitude["default"].weight.copy_(torch.arange(8.0))
    assert torch.equal(model(torch.tensor([3]))[0], layer.base_layer.weight[3] * torch.arange(8.0))


def test_a_clipped_embedding_refuses_to_merge_what_lengthens_its_rows() -> None:
    layer = linear(base=nn.Embedding(11, 8, max_norm=1.5), magnitude=True).base_model.model.layer
    with pytest.raises(MergeError) as caught:
        layer.merge()
    assert str(caught.value) == (
        "merging ['default'] into embedding 'layer'. Found: max_norm=1.5, which would clip the rows that the adapter "
        "lengthens. Keep the adapter un-merged, or set max_norm to None first."
    )
    assert not layer.merged


def test_a_clipped_embedding_refuses_to_merge_a_map_that_is_no_rotation() -> None:
    fields = {"transform": "hyperplane", "variant": "ether+", "oft_block_size": 4}
    layer = linear(base=nn.Embedding(11, 8, max_norm=1.5), **fields).base_model.model.layer
    with pytest.raises(MergeError, match="max_norm=1.5"):
        layer.merge()
