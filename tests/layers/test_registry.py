"""Which kind serves which module."""

from __future__ import annotations

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.registry import KINDS, kind_of

SERVED = [
    (nn.Linear(2, 2), "Linear"),
    (nn.MultiheadAttention(2, 1), "MultiheadAttention"),
    (nn.MultiheadAttention(2, 1).out_proj, "AttentionOutput"),
    (Conv1D(2, 2), "TransposedLinear"),
    (nn.Conv1d(2, 2, 1), "Conv"),
    (nn.Conv2d(2, 2, 1), "Conv"),
    (nn.Conv3d(2, 2, 1), "Conv"),
    (nn.ConvTranspose1d(2, 2, 1), "TransposedConv"),
    (nn.ConvTranspose2d(2, 2, 1), "TransposedConv"),
    (nn.ConvTranspose3d(2, 2, 1), "TransposedConv"),
    (nn.Embedding(2, 2), "Embedding"),
]


@pytest.mark.parametrize(("module", "kind"), SERVED, ids=lambda value: value if isinstance(value, str) else "")
def test_served(module: nn.Module, kind: str) -> None:
    assert kind_of(module, "layer").__name__ == kind


def test_every_kind_is_tried_here() -> None:
    assert {kind.__name__ for _, kind in KINDS} == {kind for _, kind in SERVED}


@pytest.mark.parametrize("module", [nn.Fold((2, 2), 1), nn.LayerNorm(2), nn.Bilinear(2, 2, 2), nn.LSTM(2, 2)])
def test_others_are_refused_by_name(module: nn.Module) -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        kind_of(module, "up.0")
    assert str(caught.value) == (
        f"layer 'up.0'. Found: a {type(module).__module__}.{type(module).__name__}. Needed: one of "
        "NonDynamicallyQuantizableLinear, Linear, Conv1D, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, "
        "ConvTranspose3d, Embedding, MultiheadAttention. "
        "Name its inner layers in target_modules, or exclude it."
    )
