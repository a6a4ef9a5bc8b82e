"""The losses of a finished image model on which its strengths are chosen."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from orthotune.image.adapter.prior import WithPrior
from orthotune.image.data.batch import Batch
from orthotune.image.families.family import LossOptions
from orthotune.image.loop.generators import generator_for
from orthotune.image.loop.order import Bucket, Dataset
from orthotune.image.loop.trainee import Trainee
from orthotune.runs.layer_strengths import LayerStrengths
from orthotune.runs.rewinding import Rewinding


class ImageRewinding(Rewinding):
    """A finished image model, and the images on which its strengths are chosen.

    The loss of an image is that of the training, as a mean over fixed draws of noise and time: two strengths are
    compared on the same draws.

    Args:
        trainee: the trained networks, in evaluation mode.
        layers: their strengths.
        batches: images by domain: ``new``, those of the task, and ``old``, which the base generated.
        draws: numbers of the draws of each image.
        options: of the loss.
    """

    def __init__(
        self, trainee: Trainee, layers: LayerStrengths, batches: Mapping[str, Sequence[Batch]], draws: Sequence[int],
        options: LossOptions,
    ) -> None:  # fmt: skip
        self.trainee, self.batches, self.draws, self.options = trainee, batches, draws, options
        super().__init__(trainee, layers)

    @torch.no_grad()
    def losses(self, domain: str) -> Sequence[tuple[float, int]]:
        """The sum of the losses of each image over its draws, and the number of draws.

        Args:
            domain: ``new`` or ``old``.
        """
        rows: list[tuple[float, int]] = []
        for number, batch in enumerate(self.batches[domain]):
            total = sum(self._loss(batch, number, draw).double() for draw in self.draws)
            rows += [(float(one), len(self.draws)) for one in torch.as_tensor(total)]
        return rows

    def backward(self, domain: str, amount: int, factor: float, draw: random.Random) -> None:
        """Add the gradients of ``factor`` times the mean loss of some images, each at one draw.

        Args:
            domain: ``new`` or ``old``.
            amount: images.
            factor: of the loss.
            draw: chooses the batches and their draws.
        """
        chosen, images = [], 0
        while images < amount:
            number = draw.randrange(len(self.batches[domain]))
            chosen.append((number, draw.choice(self.draws)))
            images += len(self.batches[domain][number].captions)
        for number, noise in chosen:
            (factor / images * self._loss(self.batches[domain][number], number, noise).sum()).backward()

    def _loss(self, batch: Batch, number: int, draw: int) -> torch.Tensor:
        loss: torch.Tensor = self.trainee(batch, generator_for(draw, number), self.options)
        return loss


def batches_of(data: Dataset, size: int, limit: int, device: torch.device) -> list[Batch]:
    """The first images of a data set in batches of one size of image each, every image with weight 1.

    Args:
        data: the data set.
        size: images of a batch at most.
        limit: number of images at most.
        device: of the batches.
    """
    members: dict[Bucket, list[int]] = {}
    for index in range(min(len(data), limit)):
        members.setdefault(data.bucket(index), []).append(index)
    found = []
    for indices in members.values():
        for start in range(0, len(indices), size):
            batch = data.batch(indices[start : start + size]).to(device)
            found.append(replace(batch, weight=torch.ones_like(batch.weight), kept=None))
    return found


def domains_of(data: Dataset) -> tuple[Dataset, Dataset | None]:
    """The images of the task, and the class images that the base generated, if the run trained with these.

    Args:
        data: of the run.
    """
    return (data.subject, data.classes) if isinstance(data, WithPrior) else (data, None)
