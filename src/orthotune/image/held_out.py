"""Images that are held out from training, and the loss on them at noise that is the same at every measurement."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from orthotune.errors import RecipeError
from orthotune.image.adapter.prior import WithPrior
from orthotune.image.data.batch import Batch
from orthotune.image.families.family import LossOptions
from orthotune.image.loop.generators import generator_for
from orthotune.image.loop.order import Bucket, Dataset
from orthotune.image.loop.trainee import Trainee
from orthotune.image.rewinding import batches_of

#: Draws of noise and time of each image. One draw would measure the time of the draw more than the model.
DRAWS = 8
#: Number of the first draw, beyond those of training steps.
FIRST_DRAW = 20_000
#: Images of each domain that are measured at most.
MOST = 32


class Part:
    """Some images of a data set, as a data set.

    Args:
        data: the data set.
        indices: of the images.
    """

    def __init__(self, data: Dataset, indices: Sequence[int]) -> None:
        self.data, self.indices = data, list(indices)
        self.epoch_in_index = bool(getattr(data, "epoch_in_index", False))

    def __len__(self) -> int:
        return len(self.indices)

    def bucket(self, index: int) -> Bucket:
        """The size of an image."""
        return self.data.bucket(self._of(index))

    def batch(self, indices: list[int]) -> Batch:
        """The images with these indices."""
        return self.data.batch([self._of(index) for index in indices])

    def _of(self, index: int) -> int:
        epoch, place = divmod(index, len(self.indices))
        return self.indices[place] + epoch * len(self.data)


def hold_out(data: Dataset, amount: float, seed: int) -> tuple[Dataset, dict[str, Dataset]]:
    """Divide a data set into images to train on and images to measure on.

    An image that is repeated is held out with all its repeats. Where class images are trained on, as many of those are
    held out, too, and their loss measures forgetting.

    Args:
        data: of the run.
        amount: number of images, or a share of them below 1.
        seed: chooses the images.

    Returns:
        The images to train on, and those that are held out by domain: ``new`` and, with class images, ``old``.

    Raises:
        RecipeError: no image would be left to train on.

    Example:
        >>> train, held = hold_out(data, 2, seed=0)  # doctest: +SKIP
        >>> len(held["new"])  # doctest: +SKIP
        2
    """
    if isinstance(data, WithPrior):
        subject, new = _divided(data.subject, amount, seed)
        if len(data.classes) == 1:
            return WithPrior(subject, data.classes, data.weight, data.keep), {"new": new}
        classes, old = _divided(data.classes, min(len(new), len(data.classes) - 1), seed)
        return WithPrior(subject, classes, data.weight, data.keep), {"new": new, "old": old}
    train, new = _divided(data, amount, seed)
    return train, {"new": new}


class HeldOutLoss:
    """The loss of the training on held-out images, as a mean over fixed draws of noise and time.

    Args:
        trainee: the model.
        domains: held-out images by domain, ``new`` and perhaps ``old``.
        batch_size: images computed together; nothing but memory depends on it.
        options: of the loss.
        device: of the model.
    """

    def __init__(
        self, trainee: Trainee, domains: Mapping[str, Dataset], batch_size: int, options: LossOptions,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.trainee, self.options = trainee, options
        self.batches = {name: batches_of(data, batch_size, MOST, device) for name, data in domains.items()}

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """``held_out_loss`` of the task and ``old_held_out_loss`` of class images; the modes of modules stay."""
        names = {"new": "held_out_loss", "old": "old_held_out_loss"}
        return {names[domain]: self._mean(batches) for domain, batches in self.batches.items()}

    def _mean(self, batches: Sequence[Batch]) -> float:
        total, count = 0.0, 0
        for number, batch in enumerate(batches):
            for draw in range(DRAWS):
                losses = self.trainee(batch, generator_for(FIRST_DRAW + draw, number), self.options)
                total += float(losses.double().sum())
                count += len(losses)
        return total / count


def _divided(data: Dataset, amount: float, seed: int) -> tuple[Part, Part]:
    names = _names(data)
    known = list(dict.fromkeys(names))
    count = round(amount * len(known)) if amount < 1 else int(amount)
    count = max(1, count)
    if count >= len(known):
        raise RecipeError(
            f"held_out={amount:g}", got=f"{len(known)} images", needed="at least one image to train on",
            do="Hold out fewer, or leave held_out out",
        )  # fmt: skip
    chosen = set(random.Random(f"{seed} held out").sample(known, count))
    held = [index for index, name in enumerate(names) if name in chosen]
    return Part(data, [index for index in range(len(names)) if names[index] not in chosen]), Part(data, held)


def _names(data: Dataset) -> list[str | bytes]:
    """What tells the images of a data set apart; repeats of an image have the same, files of two folders never."""
    examples = getattr(data, "examples", None)
    if examples is None:
        return [str(index) for index in range(len(data))]
    return [example.image.key for example in examples]
