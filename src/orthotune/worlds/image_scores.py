"""What a finetuned model of the image world learned and what it kept: scores of its pictures.

Pictures are uint8 [n, 3, 32, 32] throughout. Scores are 1 at best and 0 at worst, except ``drift`` (0 is no change).
The validation and the test split share no pair of colours, no held-out digit and no noise, so that a choice made on one
leaves the other unseen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import harmonic_mean
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from orthotune.worlds import image
from orthotune.worlds.image_captions import NUMBERS, SUBJECT, Prompt, sentence
from orthotune.worlds.image_data import COLOURS, GROUNDS, compose_all, visible
from orthotune.worlds.image_judges import Judge, colours_seen, digits_seen, directions, follows
from orthotune.worlds.image_pictures import GUIDANCE, STEPS

if TYPE_CHECKING:
    from orthotune.image.families.family import Family

T = TypeVar("T")
Split = Literal["validation", "test"]
#: First seed of a split's noise; that of the prompts that are not about the subject begins ``_KEPT`` later.
NOISE: dict[Split, int] = {"validation": 1_000_000, "test": 2_000_000}
_KEPT = 500_000
COUNT = 60


def part(split: Split, items: Sequence[T]) -> list[T]:
    """The half of ``items`` that is the split's: they are shuffled, always alike, and dealt in turn.

    Example:
        >>> sorted(part("validation", range(4)) + part("test", range(4)))
        [0, 1, 2, 3]
    """
    shuffled = list(items)
    random.Random(0).shuffle(shuffled)
    return shuffled[0 if split == "validation" else 1 :: 2]


def split_prompts(split: Split, count: int, word: str | None = None) -> list[Prompt]:
    """``count`` prompts on the split's pairs of colours: for every digit but the subject, or for it, called ``word``.

    Example:
        >>> split_prompts("test", 1, "sks digit")[0].digit
        9
    """
    pairs = part(split, [(ink, ground) for ink in COLOURS for ground in GROUNDS if visible(ink, ground)])
    drawn = []
    for number in range(count):
        (ink, ground), digit = pairs[number % len(pairs)], SUBJECT if word else number % SUBJECT
        drawn.append(Prompt(sentence(word or NUMBERS[digit], ink, ground), digit, ink, ground))
    return drawn


def follow_all(judge: Judge, pictures: Tensor, wanted: Sequence[Prompt]) -> float:
    """Share of images in which digit, ink and ground are all as their prompt says.

    A prompt whose digit is None asks for any digit.
    """
    seen = digits_seen(judge, pictures).tolist()
    right = [
        prompt.digit in (None, digit) and (prompt.ink, prompt.ground) == colours_seen(picture)
        for prompt, digit, picture in zip(wanted, seen, pictures, strict=True)
    ]
    return sum(right) / len(right)


def diversity(judge: Judge, pictures: Tensor) -> float:
    """Mean cosine distance between the handwritings of two different images; 0 when all are the same."""
    found = directions(judge, pictures)
    count = len(found)
    total = float((found @ found.mT).fill_diagonal_(0).sum())
    return max(0.0, 1 - total / (count * (count - 1)))


def drift(judge: Judge, before: Tensor, after: Tensor) -> float:
    """Mean cosine distance between the handwritings of the same noise drawn by two models; 0 when none changed."""
    return max(0.0, float((1 - (directions(judge, before) * directions(judge, after)).sum(1)).mean()))


def balance(*scores: float) -> float:
    """Harmonic mean, with which no score can be bought with another; what is below 0 counts as 0.

    Example:
        >>> balance(1.0, 0.5, -0.1), round(balance(1.0, 0.5), 3)
        (0.0, 0.667)
    """
    return float(harmonic_mean([max(0.0, score) for score in scores]))


@dataclass(frozen=True)
class SubjectScores:
    """How well a model draws the subject (five fixed nines) in new colours, and what it kept of the rest.

    Called with a step and a family, as the training loop does with its callbacks.

    Args:
        split: which prompts and noise.
        count: prompts about the subject, and as many about other digits.
        steps, guidance: of the drawing.
        base: the model before finetuning, for ``drift``; the embedded one unless given.

    Example:
        >>> SubjectScores("test", count=2).wanted[0].text.startswith("a ")
        True
    """

    split: Split = "validation"
    count: int = COUNT
    steps: int = STEPS
    guidance: float = GUIDANCE
    base: Family | None = None

    def __call__(self, step: int, family: Family) -> dict[str, float]:
        """The scores of ``family``; see :meth:`of` for their names."""
        return self.of(self._draw(family, self.wanted, 0), self._draw(family, self.others, _KEPT))

    def of(self, pictures: Tensor, others: Tensor) -> dict[str, float]:
        """The scores of images that were drawn already.

        ``nine``, ``ink``, ``ground``: shares of the subject's images that are so; ``prompt_fidelity``: all three at
        once; ``subject_fidelity``: mean cosine to the subject's own images, which have 0.72 among themselves, other
        nines 0.40, other digits 0; ``diversity`` of the subject's images.
        ``digit_kept``, ``ink_kept``, ``ground_kept``, ``kept``: the same of prompts about other digits; ``drift``:
        change of their handwriting. ``score``: harmonic mean of prompt fidelity, subject fidelity and kept.

        Args:
            pictures: images of the prompts ``wanted``.
            others: images of the prompts ``others``, whose noise begins where that of ``base_images`` does.
        """
        digit, subject = self._judges
        shares, kept = follows(digit, pictures, self.wanted), follows(digit, others, self.others)
        alike = float((directions(subject, pictures) @ self._subject.mean(0)).mean())
        found = {
            "nine": shares["digit"],
            "ink": shares["ink"],
            "ground": shares["ground"],
            "prompt_fidelity": follow_all(digit, pictures, self.wanted),
            "subject_fidelity": alike,
            "diversity": diversity(subject, pictures),
            **{f"{name}_kept": share for name, share in kept.items()},
            "kept": follow_all(digit, others, self.others),
            "drift": drift(subject, self.base_images, others),
        }
        return found | {"score": balance(found["prompt_fidelity"], alike, found["kept"])}

    @cached_property
    def wanted(self) -> list[Prompt]:
        """Prompts for the subject; a nine counts as its digit."""
        return split_prompts(self.split, self.count, image.SUBJECT_PROMPT.removeprefix("a "))

    @cached_property
    def others(self) -> list[Prompt]:
        """Prompts for all other digits."""
        return split_prompts(self.split, self.count)

    @cached_property
    def base_images(self) -> Tensor:
        """What the model drew of ``others`` before finetuning."""
        return self._draw(self.base or base_family(), self.others, _KEPT)

    @cached_property
    def _judges(self) -> tuple[Judge, Judge]:
        return image.load_judge("digit"), image.load_judge("subject")

    @cached_property
    def _subject(self) -> Tensor:
        sources = image.load_sources()
        return directions(self._judges[1], compose_all(image.subject_scenes(sources), sources))

    def _draw(self, family: Family, wanted: list[Prompt], offset: int) -> Tensor:
        first = NOISE[self.split] + offset
        texts, seeds = [prompt.text for prompt in wanted], list(range(first, first + len(wanted)))
        return family.generate(texts, seeds, steps=self.steps, guidance=self.guidance).cpu()


def base_family() -> Family:
    """The built-in pipeline as it ships, in float32 on the CPU."""
    from orthotune.image.families.registry import open_family

    return open_family(str(image.PIPELINE), torch.float32, torch.device("cpu"))
