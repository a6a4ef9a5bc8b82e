"""The check against slowness that no noise can disturb: calls and bytes that one adapted layer adds.

The bounds are what today's code does. Lower them when the code gets leaner; raise one only with the reason beside it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from harness.work import added_work, aten_calls
from orthotune import OFTConfig

T, N, B = 24, 64, 16
# Parameters to R: 21 calls forward (two look-ups of the dtype, unpacking 3, a copy of the numbers for the cache, 15 for
# the norm and the products at these angles), 5 backward (Cayley 2, packing 3).
# Input times R: 3 forward (R to bfloat16, the result's memory, the product), 7 backward (the same for the input; two
# copies, a product and a cast for R).
MOST_IN_TRAINING = 21 + 5 + 3 + 7
# The cached R is cast to the model's dtype (one row: the row to float32 and back), then one product.
MOST_OUTSIDE = {"eval": 3, "decode": 3}
#: of one layer, views included
MOST_IN_A_MERGE = 14


def work(mode: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return added_work(mode, features=N, tokens=T, oft_block_size=B, **settings)


def test_calls_of_a_training_step() -> None:
    found = work("train")
    assert found.total <= MOST_IN_TRAINING, found.calls
    assert "aten.linalg_inv_ex" not in found.calls  # no LAPACK call at the angles that training has


@pytest.mark.parametrize("mode", MOST_OUTSIDE)
def test_calls_outside_training_compute_no_rotation(mode: str) -> None:
    found = work(mode)
    assert found.total <= MOST_OUTSIDE[mode], found.calls
    assert found.calls.get("aten.bmm", 0) + found.calls.get("aten.mm", 0) <= 1


def test_layers_of_one_input_cost_no_more_each() -> None:
    assert work("train", count=3).total <= work("train").total


@pytest.mark.parametrize("count", [1, 3], ids=["one layer", "query, key and value"])
def test_saved_bytes_are_the_input_once_and_each_rotation(count: int) -> None:
    x, R = 2 * T * N, 4 * N * B  # bfloat16 (T, N); float32 (N / B, B, B)
    assert work("train", count=count).saved == x + count * R


def test_saved_bytes_of_a_float32_layer() -> None:
    assert work("train", dtype=torch.float32).saved == 4 * T * N + 4 * N * B


@pytest.mark.parametrize("side", ["in", "out"])
def test_a_merge_multiplies_each_weight_by_its_blocks_once(side: str) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(N, 2 * N), torch.nn.Linear(2 * N, N))
    model = get_peft_model(net, OFTConfig(oft_block_size=B, target_modules=["0", "1"], side=side)).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.01)
    model(torch.randn(3, N))  # the rotations are there
    with FlopCounterMode(display=False) as counted:
        names = aten_calls(model.merge_adapter)
    # b multiplications and additions for each number of a weight
    assert counted.get_total_flops() == 2 * (2 * (2 * N * N) * B)
    assert sum(names.values()) <= 2 * MOST_IN_A_MERGE, names
    with FlopCounterMode(display=False) as counted:
        model.unmerge_adapter()  # the weights of before are put back
    assert counted.get_total_flops() == 0


def test_calls_are_counted_in_the_backward_too() -> None:
    x = torch.ones(2, requires_grad=True)
    found = aten_calls(lambda: torch.autograd.grad(x.exp().sum(), x))
    assert found["aten.exp"] == 1
    assert found["aten.mul"] == 1  # exp's backward


#: transform -> settings, calls that decoding one token adds to a layer, and bytes saved in training besides the input.
#: Decoding: the row to float32 and back, and one product of blocks, or two with the factors of a map of low rank.
FAMILY: dict[str, tuple[dict[str, Any], int, int]] = {
    # T U in float32, both factors in bfloat16, the rows in them, the Gram matrix
    "reflections": ({"r": 4, "oft_block_size": None}, 4, 2304),
    # the blocks that the stages are multiplied out to, the stages, their skew matrices' norms
    "butterfly": ({"oft_block_size": B // 2, "factors": 2}, 3, 8960),
    "planes": ({"oft_block_size": B}, 3, 384),
    "givens": ({"oft_block_size": B}, 3, 4 * N * B),
    # the small map once, 1024, and the coordinates of the input in bfloat16, which save a product with the basis in the
    # backward: the basis is a buffer, and its copy in bfloat16 is made again
    "subspace": ({"r": 8, "oft_block_size": None}, 4, 1024 + 2 * T * 8),
    "hyperplane": ({"oft_block_size": B}, 3, 936),
}


@pytest.mark.parametrize("name", FAMILY)
def test_calls_and_bytes_of_other_transforms(name: str) -> None:
    settings, calls, saved = FAMILY[name]
    torch.manual_seed(0)
    found = added_work("decode", features=N, tokens=T, transform=name, **settings)
    assert found.total <= calls, found.calls
    assert added_work("train", features=N, tokens=T, transform=name, **settings).saved <= 2 * T * N + saved
