"""A parameter that is exchanged for its shard and back, as FSDP2 does it, without processes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthotune.layers.parametrization.rotation import Rotation
from orthotune.rotation.blocks import BlockLayout
from orthotune.rotation.spec import RotationSpec
from orthotune.rotation.strength import Strength


@pytest.mark.parametrize("part", [1.0, 0.5])
@torch.no_grad()
def test_nothing_is_trusted_after_an_exchange(part: float) -> None:
    rotation = Rotation(BlockLayout(4, 3), RotationSpec(block_size=4))
    rotation.strength = Strength(part)
    whole = rotation.weight
    assert torch.equal(rotation(), torch.eye(4).expand(3, 4, 4))
    rotation.weight = nn.Parameter(torch.zeros(1, 6))
    version, place = whole._version, whole.data_ptr()
    # What is gathered next comes to the same place in memory, past the version.
    with torch.autograd._unsafe_preserve_version_counter(whole):
        whole.normal_(std=0.3)
    assert (whole._version, whole.data_ptr()) == (version, place)
    rotation.weight = whole
    expected = Rotation(rotation.layout, rotation.spec)
    expected.strength = Strength(part)
    expected.weight.copy_(whole)
    assert torch.equal(rotation(), expected())


def test_a_parameter_stays_the_modules_only_one() -> None:
    rotation = Rotation(BlockLayout(4, 3), RotationSpec(block_size=4))
    rotation.weight = nn.Parameter(torch.ones(3, 6))
    assert [name for name, _ in rotation.named_parameters()] == ["weight"]
    rotation.write_shard()  # without shards there is nothing to write
