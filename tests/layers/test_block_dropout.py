"""In training a block is the identity with the probability that was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from orthotune.layers.parametrization.rotation import drop_blocks
from tests.support.contract_cases import Case
from tests.support.contract_layers import KINDS
from tests.support.layer_models import linear, rotations


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shared", [False, True])
def test_the_fraction(probability: float, shared: bool) -> None:
    torch.manual_seed(0)
    count = 20000
    R = torch.full((1 if shared else count, 2, 2), 7.0)
    dropped = drop_blocks(R, probability, count)
    identity = (dropped == torch.eye(2)).all((-1, -2))
    kept = (dropped == 7).all((-1, -2))
    assert (identity ^ kept).all()
    # four standard deviations of a binomial share
    deviation = 4 * (probability * (1 - probability) / count) ** 0.5
    assert identity.float().mean().item() == pytest.approx(probability, abs=deviation)


def test_nothing_and_everything() -> None:
    R = torch.randn(5, 3, 3)
    assert torch.equal(drop_blocks(R, 0.0, 5), R)
    assert torch.equal(drop_blocks(R, 1.0, 5), torch.eye(3).expand(5, -1, -1))


def test_kept_blocks_are_not_rescaled_and_get_the_gradient() -> None:
    torch.manual_seed(0)
    R = torch.randn(40, 3, 3, requires_grad=True)
    dropped = drop_blocks(R, 0.5, 40)
    dropped.sum().backward()
    kept = (dropped == R).all((-1, -2))
    assert kept.any() and not kept.all()
    assert torch.equal(R.grad, kept[:, None, None].expand(-1, 3, 3).float())


@pytest.mark.parametrize("shared", [False, True])
def test_a_shared_block_is_dropped_place_by_place(shared: bool) -> None:
    torch.manual_seed(0)
    model = linear(module_dropout=0.5, block_share=shared).train()
    (rotation,) = rotations(model)
    patterns = {tuple((torch.eye(4) == R).all((-1, -2)).tolist()) for R in (rotation() for _ in range(60))}
    # three places, each on or off: all eight patterns turn up in sixty draws (odds of a miss: below 1 in 300)
    assert len(patterns) == 8
    whole = linear(block_share=shared)
    assert torch.equal(rotation.eval()().expand(3, -1, -1), rotations(whole)[0]().expand(3, -1, -1))


@pytest.mark.parametrize("kind", ["experts", "mixtral_experts", "attention", "conv2d", "embedding", "encoder_layer"])
@pytest.mark.parametrize("shared", [False, True])
def test_every_kind_drops_in_training_only(kind: str, shared: bool) -> None:
    torch.manual_seed(0)
    case = Case(KINDS[kind], options="shared" if shared else "exact")
    model, whole, inputs = case.trained(), case.trained(), case.inputs()
    for rotation in rotations(model):
        rotation.spec = replace(rotation.spec, dropout=0.5)
        assert rotation.train()().shape[-3] == rotation.layout.block_count
    model.train()
    assert len({model(*inputs).sum().item() for _ in range(6)}) > 1
    case.close(model.eval()(*inputs), whole(*inputs))


@pytest.mark.parametrize("kind", ["linear_rank2", "experts", "attention", "conv2d", "embedding"])
@pytest.mark.parametrize("coft", [False, True])
def test_a_merge_in_training_takes_every_block(kind: str, coft: bool) -> None:
    case = Case(KINDS[kind], options="coft" if coft else "exact")
    model, inputs = case.trained(), case.inputs()
    for rotation in rotations(model):
        rotation.spec = replace(rotation.spec, dropout=0.9)
    stored = [rotation.weight.detach().clone() for rotation in rotations(model)]
    expected = model(*inputs)
    model.train().merge_adapter(safe_merge=True)
    case.close(model.eval()(*inputs), expected)
    model.train().unmerge_adapter()
    case.close(model.merge_and_unload().eval()(*inputs), expected)
    assert all(torch.equal(r.weight, old) for r, old in zip(rotations(model), stored, strict=False))
