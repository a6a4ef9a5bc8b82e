"""What scores a picture of the image world: two small networks and a rule for colours.

Pictures are uint8 [n, 3, 32, 32] throughout.
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
#: Distance in RGB from which a pixel is no longer the ground, and how many such pixels make a digit.
_APART, _FEWEST = 45.0, 12


class Judge(nn.Module):
    """Four convolutions and one linear layer: float32 images of -1..1 to ``outputs`` numbers each."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out, pool in ((3, 24, True), (24, 48, True), (48, 64, False), (64, 64, True)):
            layers += [nn.Conv2d(into, out, 3, padding=1), nn.GroupNorm(8, out), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if pool else []
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.head = nn.Linear(64 * 4 * 4, outputs)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.head(self.trunk(pictures))

    def save(self, path: Path) -> None:
        """Write the weights in half precision."""
        write_tensors(path, {name: value.half() for name, value in self.state_dict().items()})


def load_judge(path: Path, outputs: int) -> Judge:
    """A judge as ``Judge.save`` wrote it, in float32."""
    judge = Judge(outputs).eval()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.requires_grad_(False)


@torch.no_grad()
def digits_seen(judge: Judge, pictures: Tensor) -> Tensor:
    """The digit in each image: int64 [n]."""
    return torch.cat([judge(as_input(part)).argmax(1) for part in pictures.split(256)])


@torch.no_grad()
def directions(judge: Judge, pictures: Tensor) -> Tensor:
    """What each image's digit looks like, whatever its colour and place: unit vectors [n, 64]."""
    return torch.cat([nn.functional.normalize(judge(as_input(part))) for part in pictures.split(256)])


def subject_fidelity(judge: Judge, pictures: Tensor, subject: Tensor) -> Tensor:
    """Mean cosine between each image and the images of the ``subject``: [n], 1 for the same handwriting.

    As DINO and CLIP-I scores are taken in DreamBooth (Ruiz et al. 2023, section 4.1), with an embedding of digits.
    """
    return directions(judge, pictures) @ directions(judge, subject).mean(0)


def colours_seen(picture: Tensor) -> tuple[str, str]:
    """Colour of the digit ('' if there is none) and ground of one image [3, 32, 32], by a rule alone.

    The ground is the one whose mean is nearest to the median of the border; the digit's colour is the nearest to the
    mean of the pixels that lie farthest from that ground.
    """
    pixels = picture.float()
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


def mask_seen(picture: Tensor, ink: str, ground: str) -> Tensor:
    """Which pixels of one image are nearer to the colour ``ink`` than to ``ground``: bool [32, 32]."""
    pixels = picture.float().flatten(1)
    to_ink = (pixels - torch.tensor(COLOURS[ink])[:, None]).norm(dim=0)
    return (to_ink < _from_ground(pixels, ground)).view(picture.shape[1:])


def follows(judge: Judge, pictures: Tensor, wanted: Sequence[Prompt]) -> dict[str, float]:
    """Shares of images that show the ``digit``, the ``ink`` and the ``ground`` of their prompts."""
    seen = digits_seen(judge, pictures).tolist()
    colours = [colours_seen(picture) for picture in pictures]
    asked = [(prompt.digit, digit) for prompt, digit in zip(wanted, seen, strict=True) if prompt.digit is not None]
    inks = [prompt.ink == ink for prompt, (ink, _) in zip(wanted, colours, strict=True)]
    grounds = [prompt.ground == ground for prompt, (_, ground) in zip(wanted, colours, strict=True)]
    shares = {"ink": sum(inks) / len(inks), "ground": sum(grounds) / len(grounds)}
    if asked:
        shares["digit"] = sum(want == digit for want, digit in asked) / len(asked)
    return shares


def _tones(ground: str) -> tuple[Tensor, Tensor]:
    """Darkest and lightest colour of a ground; the same one twice where it is plain."""
    dark, light = TONES.get(ground) or (COLOURS[ground],) * 2
    return torch.tensor(dark).float(), torch.tensor(light).float()


def _from_ground(pixels: Tensor, ground: str) -> Tensor:
    """Distance of each pixel [3, n] from the line between the tones of ``ground``: [n]."""
    dark, light = _tones(ground)
    along = light - dark
    length = along.dot(along).clamp(min=1)
    place = ((pixels - dark[:, None]).T @ along / length).clamp(0, 1)
    return (pixels - dark[:, None] - place * along[:, None]).norm(dim=0)
