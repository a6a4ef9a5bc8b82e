"""Class pictures whose target is what the base predicts of them."""

from __future__ import annotations

import pytest
import torch

from orthotune.image.adapter.adapters import add_adapter, trained
from orthotune.image.adapter.prior import WithPrior
from orthotune.image.families.family import LossOptions
from orthotune.image.families.registry import open_family
from tests.image.test_adapters import WAYS, turn
from tests.image.test_families import noise_of, pictures
from tests.image.test_prior import Numbers
from tests.support.tiny_pipelines import FAMILIES

KEPT = torch.tensor([False, True, True])
CAPTIONS = ["a sks digit", "a red digit", "a digit"]


def losses(family, kept):
    latents, told = family.encode_images(pictures(3), noise_of()), family.encode_captions(CAPTIONS)
    return family.losses(family.denoiser, latents, told, noise_of(), LossOptions(), kept)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("way", ["oft", "lora"])
def test_what_is_kept_costs_nothing_until_it_changes(tiny, kind, way):
    family = open_family(tiny(kind))
    add_adapter(family, WAYS[way])
    plain, kept = losses(family, None), losses(family, KEPT)
    # A batch of two against one of three: GEMMs of other sizes round apart.
    assert kept[1:].max() < 1e-9 < plain.min()
    torch.testing.assert_close(kept[0], plain[0], rtol=1e-5, atol=0)
    turn(family)
    moved = losses(family, KEPT)
    moved[1:].sum().backward()
    assert moved[1:].min() > 1e-6
    assert any(p.grad is not None and p.grad.any() for p in trained(family).values())
    # All targets as they were: the loss of the others does not know what is kept.
    torch.testing.assert_close(moved[0], losses(family, None)[0], rtol=1e-5, atol=0)


def test_the_loss_is_the_change_of_the_prediction(tiny):
    family = open_family(tiny("sd15"))
    add_adapter(family, WAYS["oft"])
    turn(family)
    seen = []
    hook = family.denoiser.register_forward_hook(lambda module, given, found: seen.append(found[0].detach()))
    found = losses(family, KEPT)
    hook.remove()
    base, adapted = seen
    assert base.shape[0] == 2 and adapted.shape[0] == 3
    torch.testing.assert_close(found[1:], (adapted[1:] - base).square().mean((1, 2, 3)), rtol=1e-5, atol=0)


def test_of_a_batch_the_class_is_kept_and_the_subject_learned():
    batch = WithPrior(Numbers(3, 0), Numbers(5, 100), keep=True).batch([1, 2])
    assert batch.kept is not None and batch.kept.tolist() == [False, False, True, True]
    assert WithPrior(Numbers(3, 0), Numbers(5, 100)).batch([1, 2]).kept is None
