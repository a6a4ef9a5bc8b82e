"""The scoring classifiers of the image world: two small networks, and a rule for colours.

All images are uint8 [n, 3, 32, 32].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from orthotune.files.safetensors_file import write_tensors
from orthotune.worlds.image_captions import Prompt
from orthotune.worlds.image_data import COLOURS, GROUNDS, TONES, as_input, visible

DIGITS, DIRECTIONS = 10, 64
#: Smallest distance in RGB of a pixel from the ground to count as digit, and fewest pixels of a digit.
_APART, _FEWEST = 45.0, 12


class Classifier(nn.Module):
    """Four convolutions and a linear layer, from float32 images of -1..1 to ``outputs`` values per image."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out, pool in ((3, 24, True), (24, 48, True), (48, 64, False), (64, 64, True)):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.GroupNorm(8, out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if pool else []
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(64 * 4 * 4, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.trunk(images))

    def save(self, path: Path) -> None:
        """Write the weights in half precision."""
        write_tensors(path, {name: value.half() for name, value in self.state_dict().items()})


def load_classifier(path: Path, outputs: int) -> Classifier:
    """Load a classifier in float32.

    Args:
        path: a file of ``Classifier.save``.
        outputs: of the network.
    """
    classifier = Classifier(outputs).eval()
    classifier.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return classifier.requires_grad_(False)


@torch.no_grad()
def digits_seen(classifier: Classifier, images: Tensor) -> Tensor:
    """Classify the digit in each image.

    Args:
        classifier: the classifier ``digit``.
        images: uint8 [n, 3, 32, 32].

    Returns:
        int64 [n].
    """
    return torch.cat([classifier(as_input(part)).argmax(1) for part in images.split(256)])


@torch.no_grad()
def directions(classifier: Classifier, images: Tensor) -> Tensor:
    """Embed the handwriting of the digit in each image, independent of colour and position.

    Args:
        classifier: the classifier ``subject``.
        images: uint8 [n, 3, 32, 32].

    Returns:
        Unit vectors [n, 64].
    """
    return torch.cat([nn.functional.normalize(classifier(as_input(part))) for part in images.split(256)])


def subject_fidelity(classifier: Classifier, images: Tensor, subject: Tensor) -> Tensor:
    """Mean cosine similarity of the handwriting in each image with the images of the subject.

    Like the DINO and CLIP-I scores of DreamBooth (Ruiz et al. 2023, section 4.1), with an embedding of digits.

    Args:
        classifier: the classifier ``subject``.
        images: uint8 [n, 3, 32, 32].
        subject: images of the subject, uint8 [m, 3, 32, 32].

    Returns:
        [n], 1 for the same handwriting.
    """
    return directions(classifier, images) @ directions(classifier, subject).mean(0)


def colours_seen(image: Tensor) -> tuple[str, str]:
    """Colour of the digit ('' if there is none) and ground of one image [3, 32, 32], by a rule.

    The ground is that whose mean colour is nearest to the median of the border of the image. The colour of the digit is
    nearest to the mean of the pixels that are farthest from the ground.
    """
    pixels = image.float()
    edge = torch.cat([pixels[:, :2].flatten(1), pixels[:, -2:].flatten(1), pixels[:, :, :2].flatten(1),
                      pixels[:, :, -2:].flatten(1)], 1)  # fmt: skip
    border = edge.median(1).values
    ground = min(GROUNDS, key=lambda name: (border - sum(_tones(name)) / 2).norm().item())
    away = _from_ground(pixels.flatten(1), ground)
    far = away > _APART
    if far.sum() < _FEWEST:
        return "", ground
    core = pixels.flatten(1)[:, away >= away[far].median()].mean(1)
    inks = [name for name in COLOURS if visible(name, ground)]
    return min(inks, key=lambda name: (core - torch.tensor(COLOURS[name])).norm().item()), ground


def mask_seen(image: Tensor, ink: str, ground: str) -> Tensor:
    """The pixels that are nearer to the colour of the digit than to the ground.

    Args:
        image: uint8 [3, 32, 32].
        ink: colour of the digit.
        ground: of the scene.

    Returns:
        bool [32, 32].
    """
    pixels = image.float().flatten(1)
    to_ink = (pixels - torch.tensor(COLOURS[ink])[:, None]).norm(dim=0)
    return (to_ink < _from_ground(pixels, ground)).view(image.shape[1:])


def follows(classifier: Classifier, images: Tensor, wanted: Sequence[Prompt]) -> dict[str, float]:
    """Shares of images that follow their prompts.

    Args:
        classifier: the classifier ``digit``.
        images: uint8 [n, 3, 32, 32].
        wanted: the prompt of each image.

    Returns:
        Shares of images with the wanted ``digit``, ``ink`` and ``ground``; ``digit`` is missing if no prompt names one.
    """
    seen = digits_seen(classifier, images).tolist()
    colours = [colours_seen(image) for image in images]
    asked = [(prompt.digit, digit) for prompt, digit in zip(wanted, seen, strict=True) if prompt.digit is not None]
    inks = [prompt.ink == ink for prompt, (ink, _) in zip(wanted, colours, strict=True)]
    grounds = [prompt.ground == ground for prompt, (_, ground) in zip(wanted, colours, strict=True)]
    shares = {"ink": sum(inks) / len(inks), "ground": sum(grounds) / len(grounds)}
    if asked:
        shares["digit"] = sum(want == digit for want, digit in asked) / len(asked)
    return shares


def _tones(ground: str) -> tuple[Tensor, Tensor]:
    """Darkest and lightest colour of a ground; both are equal for a plain ground."""
    dark, light = TONES.get(ground) or (COLOURS[ground],) * 2
    return torch.tensor(dark).float(), torch.tensor(light).float()


def _from_ground(pixels: Tensor, ground: str) -> Tensor:
    """Distance of each pixel [3, n] from the line between the two colours of a ground: [n]."""
    dark, light = _tones(ground)
    along = light - dark
    length = along.dot(along).clamp(min=1)
    position = ((pixels - dark[:, None]).T @ along / length).clamp(0, 1)
    return (pixels - dark[:, None] - position * along[:, None]).norm(dim=0)
