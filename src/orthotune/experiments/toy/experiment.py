"""The experiment that motivates orthogonal finetuning: angles carry an image through a network, lengths do not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import mse_loss

from orthotune.experiments.toy.autoencoder import Autoencoder, Part
from orthotune.experiments.toy.photos import HELD_OUT, TRAINED_ON, patches, photo

PATCH = 64
#: (what the encoder passes on, in which of its two convolutions)
CASES: tuple[tuple[Part, tuple[int, ...]], ...] = (
    ("full", ()),
    ("angle", (1,)),
    ("angle", (0, 1)),
    ("magnitude", (1,)),
    ("magnitude", (0, 1)),
)
WHERE = {(): "", (1,): "last convolution", (0, 1): "both convolutions"}


class ToySettings(BaseModel):
    """The settings of ``orthotune toy``."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(ge=1, description="Training steps of 32 patches.")] = 800
    seed: int = 0
    patches: Annotated[int, Field(ge=8, description="Training patches per photograph.")] = 400
    learning_rate: Annotated[float, Field(gt=0, description="At its peak; it rises and falls once.")] = 4e-3


@dataclass(frozen=True)
class Reconstruction:
    """Reconstructions of held-out patches from one part of the activations.

    Args:
        part: ``full``, ``angle`` or ``magnitude``.
        where: which convolutions of the encoder passed on that part only.
        error: mean squared error; black is -1, white 1.
        correlation: mean over the patches of the correlation between a patch and its reconstruction, 1 at best. It
            ignores brightness and contrast, so that only the content of the image counts.
        images: ``(patches, 3, 64, 64)``.
    """

    part: str
    where: str
    error: float
    correlation: float
    images: Tensor

    def row(self) -> dict[str, Any]:
        """The figures without the images."""
        return {key: value for key, value in asdict(self).items() if key != "images"}


@dataclass(frozen=True)
class ToyResult:
    """Held-out patches, their reconstructions, and the error of a patch's own mean colour."""

    originals: Tensor
    reconstructions: list[Reconstruction]
    mean_colour_error: float
    seconds: float


def run(settings: ToySettings | None = None, say: Callable[[str], object] = print) -> ToyResult:
    """Train the autoencoder with ordinary activations, then reconstruct images from all, the angles or the lengths.

    Args:
        settings: None for the defaults.
        say: called with messages.

    Source: OFT, arXiv 2306.07280, the toy experiment; there on flowers, here on photographs of scikit-image.

    Example:
        >>> run(ToySettings(steps=800)).reconstructions[0].error  # doctest: +SKIP
        0.005
    """
    settings = settings or ToySettings()
    generator = torch.Generator().manual_seed(settings.seed)
    seen = torch.cat([patches(photo(name), settings.patches, PATCH, generator) for name in TRAINED_ON])
    unseen = patches(photo(HELD_OUT), 64, PATCH, generator)
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = Autoencoder()
    train(model, seen, settings, generator, say)
    found = [_reconstruct(model, part, layers, seen, unseen) for part, layers in CASES]
    flat = mse_loss(unseen.mean((2, 3), keepdim=True).expand_as(unseen), unseen).item()
    return ToyResult(unseen, found, flat, time.perf_counter() - started)


def train(
    model: Autoencoder,
    images: Tensor,
    settings: ToySettings,
    generator: torch.Generator,
    say: Callable[[str], object] = print,
) -> None:
    """Train on mean squared error with Adam and one rise and fall of the learning rate.

    Args:
        model: is changed in place.
        images: ``(count, 3, height, width)``.
        settings: steps and learning rate.
        generator: chooses the batches.
        say: called with messages.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    steps = settings.steps
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=max(steps, 2))
    model.train()
    for step in range(1, steps + 1):
        batch = images[torch.randint(len(images), (32,), generator=generator)]
        loss = mse_loss(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % max(1, math.ceil(steps / 4)) == 0 or step == steps:
            say(f"step {step} of {steps}  error {loss.item():.4f}")


@torch.no_grad()
def _reconstruct(
    model: Autoencoder, part: Part, layers: tuple[int, ...], seen: Tensor, unseen: Tensor
) -> Reconstruction:
    model.pass_on(part, layers, seen)
    images = model(unseen)
    return Reconstruction(part, WHERE[layers], mse_loss(images, unseen).item(), correlation(images, unseen), images)


def correlation(one: Tensor, other: Tensor) -> float:
    """The mean over a batch of the correlation of two images, without the mean of each channel.

    Args:
        one: some images.
        other: as many images, compared one by one.

    Shapes: both ``(batch, channels, height, width)``. An image of one colour counts as 0.

    Example:
        >>> image = torch.rand(2, 3, 4, 4)
        >>> round(correlation(image, 2 * image + 1), 4), round(correlation(image, -image), 4)
        (1.0, -1.0)
    """
    first, second = ((side - side.mean((2, 3), keepdim=True)).flatten(1).double() for side in (one, other))
    return torch.cosine_similarity(first, second, dim=1).mean().item()


def write(result: ToyResult, settings: ToySettings, folder: Path) -> None:
    """Write ``toy.json``, ``toy.csv`` and ``toy.png``.

    Args:
        result: of :func:`run`.
        settings: of the same run.
        folder: must exist.
    """
    from orthotune.experiments.toy.figure import draw
    from orthotune.files.json_file import write_json
    from orthotune.files.tables import write_table

    rows = [found.row() for found in result.reconstructions]
    facts = {"mean_colour_error": result.mean_colour_error, "seconds": result.seconds}
    write_json(folder / "toy.json", {"settings": settings.model_dump(), "reconstructions": rows, **facts})
    write_table(folder / "toy.csv", rows)
    draw(result, folder / "toy.png")
