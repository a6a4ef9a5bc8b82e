"""Rotations that are out of date together are computed together, to the same numbers."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.kernels import from_parameters
from orthotune.kernels.from_parameters import rotation_of
from orthotune.layers import parametrization
from orthotune.layers.parametrization import group
from orthotune.layers.parametrization.rotation import Rotation


def stack(**changes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 36), nn.Linear(36, 12), nn.Linear(12, 24))
    config = OFTConfig(**{"oft_block_size": 12, "target_modules": ["0", "1", "2"], **changes})
    model = get_peft_model(model, config)
    for rotation in rotations(model):
        nn.init.normal_(rotation.weight, std=0.1)
    return model


def rotations(model):
    return [module for module in model.modules() if isinstance(module, Rotation)]


X = torch.randn(5, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def batches(monkeypatch):
    """The number of stored blocks in each computation."""
    sizes = []

    def counted(spec, v, known=None):
        if known is None:
            sizes.append(v.shape[-2])
        return rotation_of(spec, v, known)

    monkeypatch.setattr(parametrization.rotation, "rotation_of", counted)
    return sizes


def test_all_layers_in_one_batch_to_the_numbers_of_each_alone(batches):
    model = stack()
    model(X)
    assert batches == [2 + 3 + 1]
    for rotation in rotations(model):
        # a batch may take one factor more than a layer alone: float32 rounding
        torch.testing.assert_close(rotation(), rotation_of(rotation.spec, rotation.weight), atol=5e-7, rtol=0)


def test_a_rotation_has_the_same_bits_whichever_layer_asks_first(batches):
    """So that merging layer by layer, in any order, gives what the whole model computes."""
    model, other = stack(), stack()
    model(X)
    with torch.no_grad():
        last_first = [rotation().clone() for rotation in reversed(rotations(other))]
        assert all(torch.equal(a(), b) for a, b in zip(reversed(rotations(model)), last_first, strict=True))
        rotations(model)[2].weight.add_(0.1)
        rotations(other)[2].weight.add_(0.1)
        assert torch.equal(rotations(model)[0](), rotations(other)[0]())
        assert torch.equal(rotations(model)[2](), rotations(other)[2]())


def test_gradients_are_those_of_each_layer_alone():
    model, alone = stack(), stack()
    for rotation in rotations(alone):
        rotation.group = None
    for twin in (model, alone):
        twin(X).square().sum().backward()
    for one, other in zip(rotations(model), rotations(alone), strict=True):
        # float32 through three layers
        torch.testing.assert_close(one.weight.grad, other.weight.grad, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"coft": True, "eps": 0.2}, {"block_size_pattern": {"1": 6}}])
def test_what_differs_stays_apart(batches, changes):
    stack(**changes)(X)
    assert batches == ([2, 3, 1] if "coft" in changes else [3, 6])


def test_a_batch_is_bounded(batches, monkeypatch):
    monkeypatch.setattr(group, "BATCH", 5 * 12 * 12)
    stack()(X)
    assert batches == [5, 1]


def test_a_copy_leaves_the_model_behind_and_a_deleted_adapter_its_peers():
    model = stack()
    layer = copy.deepcopy(model.base_model.model[0])
    assert rotations(layer)[0].group is None
    model.add_adapter("other", OFTConfig(oft_block_size=6, target_modules=["0", "2"]))
    model.delete_adapter("default")
    model.set_adapter("other")
    assert torch.isfinite(model(X)).all()


@pytest.fixture
def backwards(monkeypatch):
    """The number of stored blocks in each backward."""
    sizes, passed = [], from_parameters._exact_backward
    monkeypatch.setattr(from_parameters, "_exact_backward", lambda R, g: sizes.append(len(R)) or passed(R, g))
    return sizes


def test_one_backward_serves_all_layers_until_the_parameters_change(batches, backwards):
    model = stack()
    model(X).sum().backward()
    first = [rotation.weight.grad.clone() for rotation in rotations(model)]
    model(X).sum().backward()  # the same node once more: gradients accumulate
    assert (batches, backwards) == ([6], [6, 6])
    for rotation, grad in zip(rotations(model), first, strict=True):
        assert torch.equal(rotation.weight.grad, 2 * grad)
    torch.optim.SGD([rotation.weight for rotation in rotations(model)], lr=0.1).step()
    model(X).sum().backward()
    assert (batches, backwards) == ([6, 6], [6, 6, 6])


def test_a_layer_that_a_forward_passes_by_gets_no_gradient(backwards):
    model = stack()
    first, middle, last = (layer for layer in model.base_model.model)
    last(middle(first(X))).sum().backward()
    for rotation in rotations(model):
        rotation.weight.grad = None
    last(torch.ones(1, 12)).sum().backward()
    assert [rotation.weight.grad is None for rotation in rotations(model)] == [True, True, False]
    assert backwards == [6, 1]


def test_what_is_trained_may_change_between_steps():
    model = stack()
    chosen = rotations(model)[1].weight
    chosen.requires_grad_(False)
    model(X).sum().backward()
    assert chosen.grad is None
    chosen.requires_grad_(True)
    model(X).sum().backward()
    assert chosen.grad.abs().max() > 0
    for rotation in rotations(model):
        rotation.weight.requires_grad_(False)
    assert not model(X).requires_grad


def test_numbers_that_are_scaled_have_the_gradient_of_each_layer_alone():
    model, alone = stack(scaled=True), stack(scaled=True)
    for rotation in rotations(alone):
        rotation.group = None
    for twin in (model, alone):
        twin(X).square().sum().backward()
    for one, other in zip(rotations(model), rotations(alone), strict=True):
        # float32 through three layers
        torch.testing.assert_close(one.weight.grad, other.weight.grad, atol=1e-5, rtol=1e-5)


def test_processes_that_send_gradients_have_one_backward_for_each_layer(monkeypatch, backwards):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    stack()(X).sum().backward()
    assert sorted(backwards) == [1, 2, 3]


def test_a_deleted_model_is_let_go():
    model = stack()
    model(X).sum().backward()
    R, weight = (weakref.ref(found) for found in (rotations(model)[0](), rotations(model)[0].weight))
    del model
    gc.collect()
    assert R() is None and weight() is None
