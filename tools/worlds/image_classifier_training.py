"""Train the scoring classifiers of the image world on scenes of training digits; held-out digits test them."""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from torch import Tensor, nn

from image_training import Plan, train
from orthotune.worlds.image_classifiers import DIGITS, DIRECTIONS, Classifier, digits_seen, directions
from orthotune.worlds.image_data import as_input, compose_all, random_scene
from orthotune.worlds.image_sources import Sources

EVERY_DIGIT: tuple[int, ...] = tuple(range(10))
VIEWS = 12
_TEMPERATURE = 0.1


def views(sources: Sources, held_out: bool, each: int, seed: int) -> tuple[Tensor, Tensor]:
    """Several scenes of each digit of one part: images [n, each, 3, 32, 32] and labels [n].

    Args:
        sources: the digits and textures.
        held_out: the held-out digits instead of the training digits.
        each: scenes per digit.
        seed: of the scenes.
    """
    chance = random.Random(seed)
    rows = sources.rows(EVERY_DIGIT, held_out)
    images = compose_all([random_scene([row], chance) for row in rows for _ in range(each)], sources)
    return images.view(len(rows), each, *images.shape[1:]), sources.labels[rows].long()


def train_digit_classifier(images: Tensor, labels: Tensor, plan: Plan, checkpoint: Path, seed: int) -> Classifier:
    """Train a classifier of the digit."""
    torch.manual_seed(seed)
    classifier = Classifier(DIGITS)

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(images), (64,), generator=generator)
        which = torch.randint(images.shape[1], (64,), generator=generator)
        return nn.functional.cross_entropy(classifier(_augmented(images[rows, which], generator)), labels[rows])

    train(classifier, loss_at, plan, checkpoint)
    return classifier


def train_subject_classifier(images: Tensor, plan: Plan, checkpoint: Path, seed: int) -> Classifier:
    """Train an embedding in which two scenes of the same handwritten digit have the same direction.

    The loss is NT-Xent (Chen et al. 2020, SimCLR, equation 1) over 48 digits in two scenes each.
    """
    torch.manual_seed(seed)
    classifier = Classifier(DIRECTIONS)

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randperm(len(images), generator=generator)[:48]
        pairs = torch.stack([torch.randperm(images.shape[1], generator=generator)[:2] for _ in rows])
        both = torch.cat([images[rows, pairs[:, 0]], images[rows, pairs[:, 1]]])
        unit = nn.functional.normalize(classifier(_augmented(both, generator)))
        likeness = (unit @ unit.T / _TEMPERATURE).fill_diagonal_(-math.inf)
        return nn.functional.cross_entropy(likeness, torch.arange(96).roll(48))

    train(classifier, loss_at, plan, checkpoint)
    return classifier


def examine(digit: Classifier, subject: Classifier, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Test both classifiers on scenes [n, each, ...] of held-out digits.

    Returns:
        ``digit``: share of correct digits. ``same_handwriting``: share of first scenes whose nearest second scene,
        among those of all n digits, shows the same digit.
    """
    named = digits_seen(digit, images.flatten(0, 1)) == labels.repeat_interleave(images.shape[1])
    likeness = directions(subject, images[:, 0]) @ directions(subject, images[:, 1]).T
    same = likeness.argmax(1) == torch.arange(len(images))
    return {"digit": round(named.float().mean().item(), 4), "same_handwriting": round(same.float().mean().item(), 4)}


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Augment images like the errors of a generator: rotated, stretched, blurred and noisy, as floats."""
    count = len(images)
    angle = (torch.rand(count, generator=generator) - 0.5) * 0.4
    stretch = 1 + (torch.rand(count, 2, generator=generator) - 0.5) * 0.2
    rotation = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1)
    affine = torch.cat([rotation * stretch[:, :, None], torch.zeros(count, 2, 1)], 2)
    grid = nn.functional.affine_grid(affine, [count, 3, 32, 32], align_corners=False)
    rotated = nn.functional.grid_sample(as_input(images), grid, padding_mode="border", align_corners=False)
    soft = nn.functional.avg_pool2d(rotated, 3, stride=1, padding=1, count_include_pad=False)
    share = torch.rand(count, 1, 1, 1, generator=generator)
    return rotated.lerp(soft, share) + 0.1 * torch.rand(count, 1, 1, 1, generator=generator) * torch.randn(
        rotated.shape, generator=generator
    )
