"""A subspace has a basis from the weight, or says that it has none."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload
from torch import nn

from orthotune import OFTConfig, get_peft_model, set_scale
from orthotune.errors import ConfigError


def test_the_basis_of_an_offloaded_weight_is_that_of_the_weight() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 4))
    config = OFTConfig(transform="subspace", r=3, target_modules=["0", "2"])
    wanted = get_peft_model(copy.deepcopy(net), config).base_model.model[0].rotations("default")[""]
    model = get_peft_model(cpu_offload(net, torch.device("cpu")), config)
    found = model.base_model.model[0].rotations("default")[""]
    assert wanted.basis.any() and torch.equal(found.basis, wanted.basis)
    assert net[0].get_base_layer().weight.device.type == "meta"  # put away again


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_basis_that_is_written_alone_is_seen(strength: float) -> None:
    torch.manual_seed(0)
    config = OFTConfig(transform="subspace", r=3, target_modules=["0"], init_weights=False)
    model = get_peft_model(nn.Sequential(nn.Linear(10, 6)), config).eval()
    set_scale(model, "default", strength)
    layer, x = model.base_model.model[0], torch.randn(2, 10)
    rotation = layer.rotations("default")[""]
    with torch.no_grad():
        before = [model(x) for _ in range(3)][-1]  # the later ones repeat the first
        # Past the version counter of the buffer, and as another buffer.
        rotation.basis.data.copy_(torch.linalg.qr(torch.randn(10, 3)).Q.mT)
        found = model(x)
        torch.testing.assert_close(found, copy.deepcopy(model)(x))
        assert (found - before).abs().max() > 1e-3
        rotation.basis = torch.linalg.qr(torch.randn(10, 3)).Q.mT.contiguous()
        assert (model(x) - found).abs().max() > 1e-3
        torch.testing.assert_close(model(x), copy.deepcopy(model)(x))


def test_a_subspace_without_a_basis_is_refused() -> None:
    config = OFTConfig(transform="subspace", r=3, target_modules=["0"])
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(10, 6))
    model = get_peft_model(net, config, low_cpu_mem_usage=False)
    rotation = model.base_model.model[0].rotations("default")[""]
    rotation.to_empty(device="cpu")
    rotation.basis.zero_()
    with pytest.raises(ConfigError, match="no basis"):
        rotation.compute()
