"""Which weights can be read as they are stored."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import UnsupportedLayerError
from orthotune.quantized.plain import FLOATS, require_plain


class Packed(Tensor):
    """Stands for a quantized tensor type."""


@pytest.mark.parametrize("dtype", FLOATS)
def test_plain_weights_pass(dtype: torch.dtype) -> None:
    for weight in (torch.zeros(2, 2, dtype=dtype), nn.Parameter(torch.zeros(2, 2, dtype=dtype))):
        require_plain(weight, "q_proj", nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64, torch.bool])
def test_other_numbers_are_refused_by_name(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        require_plain(torch.zeros(2, 2, dtype=dtype), "q_proj", nn.Linear(2, 2))
    assert str(caught.value) == (
        f"layer 'q_proj' (torch.nn.modules.linear.Linear). Found: a weight of type Tensor and dtype {dtype}. Needed: a "
        "plain float32, float64, bfloat16 or float16 weight. Load the base model without quantization, or exclude the "
        "layer."
    )


def test_other_tensor_types_are_refused_by_name() -> None:
    packed = torch.zeros(2, 2).as_subclass(Packed)
    for weight in (packed, nn.Parameter(packed)):
        with pytest.raises(UnsupportedLayerError, match="a weight of type Packed and dtype torch.float32"):
            require_plain(weight, "q_proj", nn.Linear(2, 2))


def test_a_model_is_left_alone_when_one_weight_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedLayerError, match="layer '1'"):
        get_peft_model(model, OFTConfig(oft_block_size=4, target_modules=["0", "1"]))
    assert type(model[0]) is nn.Linear and type(model[1]) is nn.Linear


def test_a_parametrized_weight_is_refused_in_words():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.raises(UnsupportedLayerError, match=r"layer 'q_proj'.*parametrized weight.*remove_parametrizations"):
        require_plain(layer.weight, "q_proj", layer)
