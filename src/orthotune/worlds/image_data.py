"""Scenes of the image world: a coloured digit on a plain or textured ground, 32 x 32 pixels.

Example:
    >>> scene = Scene(row=0, size=24, down=1, right=-2, ink="red", ground="grass", crop=(5, 40))
    >>> scene.ink, scene.ground
    ('red', 'grass')
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from orthotune.worlds.image_sources import TEXTURES, Sources

SIDE = 32
SIZES = range(21, 29)
JITTER = 2

#: Far apart in RGB, so that a rule can distinguish them after the autoencoder.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 165, 50),
    "blue": (40, 70, 220),
    "yellow": (240, 220, 40),
    "purple": (160, 40, 190),
    "cyan": (60, 210, 220),
    "white": (245, 245, 245),
    "black": (15, 15, 15),
}
#: The darkest and the lightest colour of each texture.
TONES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "grass": ((20, 70, 20), (120, 190, 70)),
    "bricks": ((90, 30, 20), (210, 130, 90)),
    "gravel": ((60, 60, 65), (190, 185, 180)),
}
GROUNDS: tuple[str, ...] = (*COLOURS, *TEXTURES)
#: Pairs of colour and ground that cannot be distinguished, besides a colour on itself.
_UNSEEN = {("green", "grass"), ("red", "bricks")}


@dataclass(frozen=True)
class Scene:
    """A scene: the digit (its row in the sources), its size and offset from the centre in pixels, colour and ground."""

    row: int
    size: int
    down: int
    right: int
    ink: str
    ground: str
    crop: tuple[int, int] = (0, 0)


def visible(ink: str, ground: str) -> bool:
    """Whether a digit can be distinguished from its ground.

    Args:
        ink: colour of the digit.
        ground: of the scene.
    """
    return ink != ground and (ink, ground) not in _UNSEEN


def random_scene(rows: Sequence[int], chance: random.Random, textured: float = 0.25) -> Scene:
    """A random scene.

    Args:
        rows: rows of the digits to choose from.
        chance: generator of the choice.
        textured: probability of a textured ground.
    """
    while True:
        ink = chance.choice(list(COLOURS))
        ground = chance.choice(TEXTURES) if chance.random() < textured else chance.choice(list(COLOURS))
        if visible(ink, ground):
            break
    down, right = (chance.randint(-JITTER, JITTER) for _ in range(2))
    crop = (chance.randrange(97), chance.randrange(97))
    return Scene(chance.choice(rows), chance.choice(SIZES), down, right, ink, ground, crop)


def mask(scene: Scene, sources: Sources) -> Tensor:
    """The coverage of each pixel by the digit.

    Args:
        scene: the scene.
        sources: the digits and textures.

    Returns:
        float32 [32, 32] of 0..1.
    """
    digit = sources.digits[scene.row].float()[None, None] / 16
    grown = interpolate(digit, (scene.size, scene.size), mode="bicubic", align_corners=False)[0, 0]
    top, left = ((SIDE - scene.size) // 2 + offset for offset in (scene.down, scene.right))
    cover = torch.zeros(SIDE, SIDE)
    cover[top : top + scene.size, left : left + scene.size] = ((grown - 0.25) / 0.35).clamp(0, 1)
    return cover


def compose(scene: Scene, sources: Sources) -> Tensor:
    """The image of a scene.

    Args:
        scene: the scene.
        sources: the digits and textures.

    Returns:
        uint8 [3, 32, 32].
    """
    cover = mask(scene, sources)
    ink = torch.tensor(COLOURS[scene.ink]).float()[:, None, None]
    return (cover * ink + (1 - cover) * _ground(scene, sources)).round().to(torch.uint8)


def compose_all(scenes: Sequence[Scene], sources: Sources) -> Tensor:
    """The images of several scenes.

    Args:
        scenes: the scenes.
        sources: the digits and textures.

    Returns:
        uint8 [n, 3, 32, 32].
    """
    images = torch.empty(len(scenes), 3, SIDE, SIDE, dtype=torch.uint8)
    for number, scene in enumerate(scenes):
        images[number] = compose(scene, sources)
    return images


def as_input(images: Tensor) -> Tensor:
    """Convert uint8 images to float32 of -1..1, the input of the autoencoder and the classifiers."""
    return images.float() / 127.5 - 1


def _ground(scene: Scene, sources: Sources) -> Tensor:
    if scene.ground in COLOURS:
        return torch.tensor(COLOURS[scene.ground]).float()[:, None, None].expand(3, SIDE, SIDE)
    top, left = scene.crop
    light = sources.textures[TEXTURES.index(scene.ground), top : top + SIDE, left : left + SIDE].float() / 255
    dark_tone, light_tone = (torch.tensor(tone).float()[:, None, None] for tone in TONES[scene.ground])
    return dark_tone + light * (light_tone - dark_tone)
