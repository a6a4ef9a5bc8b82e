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
    """``each`` scenes of every digit of one part: pictures [n, each, 3, 32, 32] and labels [n]."""
    chance = random.Random(seed)
    rows = sources.rows(EVERY_DIGIT, held_out)
    pictures = compose_all([random_scene([row], chance) for row in rows for _ in range(each)], sources)
    return pictures.view(len(rows), each, *pictures.shape[1:]), sources.labels[rows].long()


def train_digit_classifier(pictures: Tensor, labels: Tensor, plan: Plan, checkpoint: Path, seed: int) -> Classifier:
    """A classifier that names the digit."""
    torch.manual_seed(seed)
    classifier = Classifier(DIGITS)

    def loss_at(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(pictures), (64,), generator=draw)
        which = torch.randint(pictures.shape[1], (64,), generator=draw)
        return nn.functional.cross_entropy(classifier(_worn(pictures[rows, which], draw)), labels[rows])

    train(classifier, loss_at, plan, checkpoint)
    return classifier


def train_subject_classifier(pictures: Tensor, plan: Plan, checkpoint: Path, seed: int) -> Classifier:
    """A classifier that gives two scenes of one handwritten digit the same direction, and others other ones.

    The loss is NT-Xent (Chen et al. 2020, SimCLR, equation 1) over 48 digits in two scenes each.
    """
    torch.manual_seed(seed)
    classifier = Classifier(DIRECTIONS)

    def loss_at(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randperm(len(pictures), generator=draw)[:48]
        pairs = torch.stack([torch.randperm(pictures.shape[1], generator=draw)[:2] for _ in rows])
        both = torch.cat([pictures[rows, pairs[:, 0]], pictures[rows, pairs[:, 1]]])
        unit = nn.functional.normalize(classifier(_worn(both, draw)))
        likeness = (unit @ unit.T / _TEMPERATURE).fill_diagonal_(-math.inf)
        return nn.functional.cross_entropy(likeness, torch.arange(96).roll(48))

    train(classifier, loss_at, plan, checkpoint)
    return classifier


def examine(digit: Classifier, subject: Classifier, pictures: Tensor, labels: Tensor) -> dict[str, float]:
    """Both classifiers on scenes [n, each, ...] of held-out digits.

    ``digit``: share named rightly. ``same_handwriting``: share of scenes whose nearest among the second scenes of all
    n digits is that of its own digit.
    """
    named = digits_seen(digit, pictures.flatten(0, 1)) == labels.repeat_interleave(pictures.shape[1])
    likeness = directions(subject, pictures[:, 0]) @ directions(subject, pictures[:, 1]).T
    own = likeness.argmax(1) == torch.arange(len(pictures))
    return {"digit": round(named.float().mean().item(), 4), "same_handwriting": round(own.float().mean().item(), 4)}


def _worn(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Float pictures turned, stretched, blurred and with noise, as a generator may make them."""
    count = len(pictures)
    angle = (torch.rand(count, generator=draw) - 0.5) * 0.4
    stretch = 1 + (torch.rand(count, 2, generator=draw) - 0.5) * 0.2
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()], 1), torch.stack([angle.sin(), angle.cos()], 1)], 1)
    affine = torch.cat([turn * stretch[:, :, None], torch.zeros(count, 2, 1)], 2)
    grid = nn.functional.affine_grid(affine, [count, 3, 32, 32], align_corners=False)
    turned = nn.functional.grid_sample(as_input(pictures), grid, padding_mode="border", align_corners=False)
    soft = nn.functional.avg_pool2d(turned, 3, stride=1, padding=1, count_include_pad=False)
    share = torch.rand(count, 1, 1, 1, generator=draw)
    return turned.lerp(soft, share) + 0.1 * torch.rand(count, 1, 1, 1, generator=draw) * torch.randn(
        turned.shape, generator=draw
    )
