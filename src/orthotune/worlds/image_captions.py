"""Captions of scenes, and the prompts on which a pipeline of the image world is scored."""

from __future__ import annotations

import random
from dataclasses import dataclass

from orthotune.worlds.image_data import COLOURS, GROUNDS, Scene, visible
from orthotune.worlds.image_sources import TEXTURES

NUMBERS: tuple[str, ...] = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: The label that the pipeline was not trained on: the subject.
SUBJECT = 9
WORDS: tuple[str, ...] = ("a", "photo", "of", "on", "background", "digit", *NUMBERS, *COLOURS, *TEXTURES)


@dataclass(frozen=True)
class Prompt:
    """A prompt, and what its image must show: the digit (None: any), its colour and its ground."""

    text: str
    digit: int | None
    ink: str
    ground: str


def sentence(word: str, ink: str = "", ground: str = "") -> str:
    """A caption without variations.

    Args:
        word: name of the digit, or another noun.
        ink: colour of the digit; not mentioned if empty.
        ground: of the scene; not mentioned if empty.

    Example:
        >>> sentence("three", "red", "blue"), sentence("digit", ground="grass")
        ('a red three on a blue background', 'a digit on grass')
    """
    place = f" on {ground}" if ground in TEXTURES else f" on a {ground} background" if ground else ""
    return f"a {ink} {word}{place}" if ink else f"a {word}{place}"


def caption(scene: Scene, label: int, chance: random.Random) -> str:
    """A random caption of a scene. Some captions omit details, and some are empty (for guidance).

    Args:
        scene: the scene.
        label: its digit.
        chance: generator of the choice.
    """
    if chance.random() < 0.10:
        return ""
    word = "digit" if chance.random() < 0.10 else NUMBERS[label]
    ground = "" if chance.random() < 0.08 else scene.ground
    ink = "" if chance.random() < 0.08 else scene.ink
    text = sentence(word, ink, ground)
    return f"a photo of {text}" if chance.random() < 0.25 else text


def prompts(count: int, seed: int, word: str | None = None, grounds: tuple[str, ...] = GROUNDS) -> list[Prompt]:
    """Prompts with all digits except the subject, one after the other.

    Args:
        count: number of prompts.
        seed: of colours and grounds.
        word: noun of all prompts, instead of the digits.
        grounds: the grounds to choose from.

    Example:
        >>> prompts(2, seed=0, word="sks digit", grounds=("grass",))[0].text.endswith("sks digit on grass")
        True
    """
    chance = random.Random(seed)
    pairs = [(ink, ground) for ink in COLOURS for ground in grounds if visible(ink, ground)]
    chosen = []
    for number in range(count):
        ink, ground = chance.choice(pairs)
        digit = None if word else number % SUBJECT
        chosen.append(Prompt(sentence(word or NUMBERS[number % SUBJECT], ink, ground), digit, ink, ground))
    return chosen
