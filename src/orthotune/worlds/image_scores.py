"""Scores of a finetuned model of the image world: how well it learned the subject, and what it kept of the rest.

All images are uint8 [n, 3, 32, 32]. Scores are 1 at best and 0 at worst, except ``drift`` (0 is no change). The
validation and the test split have no pair of colours, no held-out digit and no noise in common, so that a choice made
on the validation split can be tested on unseen data.
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
from orthotune.worlds.image_classifiers import Classifier, colours_seen, digits_seen, directions, follows
from orthotune.worlds.image_data import COLOURS, GROUNDS, compose_all, visible
from orthotune.worlds.image_samples import GUIDANCE, STEPS

if TYPE_CHECKING:
    from orthotune.image.families.family import Family

T = TypeVar("T")
Split = Literal["validation", "test"]
#: First seed of the noise of a split; the seeds for prompts about other digits begin ``_KEPT`` later.
NOISE: dict[Split, int] = {"validation": 1_000_000, "test": 2_000_000}
_KEPT = 500_000
COUNT = 60


def part(split: Split, items: Sequence[T]) -> list[T]:
    """The half of the items that belongs to a split: the items are shuffled with a fixed seed and divided alternately.

    Args:
        split: ``validation`` or ``test``.
        items: to divide.

    Example:
        >>> sorted(part("validation", range(4)) + part("test", range(4)))
        [0, 1, 2, 3]
    """
    shuffled = list(items)
    random.Random(0).shuffle(shuffled)
    return shuffled[0 if split == "validation" else 1 :: 2]


def split_prompts(split: Split, count: int, word: str | None = None) -> list[Prompt]:
    """Prompts with the pairs of colours of a split.

    Args:
        split: ``validation`` or ``test``.
        count: number of prompts.
        word: name of the subject, for prompts about it; None for prompts about all other digits.

    Example:
        >>> split_prompts("test", 1, "sks digit")[0].digit
        9
    """
    pairs = part(split, [(ink, ground) for ink in COLOURS for ground in GROUNDS if visible(ink, ground)])
    chosen = []
    for number in range(count):
        (ink, ground), digit = pairs[number % len(pairs)], SUBJECT if word else number % SUBJECT
        chosen.append(Prompt(sentence(word or NUMBERS[digit], ink, ground), digit, ink, ground))
    return chosen


def follow_all(classifier: Classifier, images: Tensor, wanted: Sequence[Prompt]) -> float:
    """Share of images that match their prompt in digit, colour and ground.

    Args:
        classifier: the classifier ``digit``.
        images: uint8 [n, 3, 32, 32].
        wanted: the prompts; any digit matches a prompt whose digit is None.
    """
    seen = digits_seen(classifier, images).tolist()
    right = [
        prompt.digit in (None, digit) and (prompt.ink, prompt.ground) == colours_seen(one)
        for prompt, digit, one in zip(wanted, seen, images, strict=True)
    ]
    return sum(right) / len(right)


def diversity(classifier: Classifier, images: Tensor) -> float:
    """Mean cosine distance between the handwriting of two different images; 0 if all are the same.

    Args:
        classifier: the classifier ``subject``.
        images: uint8 [n, 3, 32, 32], at least two.
    """
    found = directions(classifier, images)
    count = len(found)
    total = float((found @ found.mT).fill_diagonal_(0).sum())
    return max(0.0, 1 - total / (count * (count - 1)))


def drift(classifier: Classifier, before: Tensor, after: Tensor) -> float:
    """Mean cosine distance between the handwriting of two models for the same prompts and noise; 0 for no change.

    Args:
        classifier: the classifier ``subject``.
        before: images of the base, uint8 [n, 3, 32, 32].
        after: images of the finetuned model, in the same order.
    """
    return max(0.0, float((1 - (directions(classifier, before) * directions(classifier, after)).sum(1)).mean()))


def balance(*scores: float) -> float:
    """Harmonic mean of the scores, which is low if one of them is low; scores below 0 count as 0.

    Example:
        >>> balance(1.0, 0.5, -0.1), round(balance(1.0, 0.5), 3)
        (0.0, 0.667)
    """
    return float(harmonic_mean([max(0.0, score) for score in scores]))


@dataclass(frozen=True)
class SubjectScores:
    """Scores how well a model learned the subject (five fixed nines) in new colours, and what it kept of the rest.

    The training loop calls the object with a step and a family.

    Args:
        split: of prompts and noise.
        count: number of prompts about the subject, and of prompts about other digits.
        steps: of the sampler.
        guidance: scale of the classifier-free guidance.
        base: the model before finetuning, for ``drift``; the built-in model if None.

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
        return self.of(self._generate(family, self.wanted, 0), self._generate(family, self.others, _KEPT))

    def of(self, images: Tensor, others: Tensor) -> dict[str, float]:
        """The scores of generated images.

        Args:
            images: of the prompts ``wanted``.
            others: of the prompts ``others``, generated with the same noise as ``base_images``.

        Returns:
            For the subject: ``nine``, ``ink``, ``ground``, shares of matching images; ``prompt_fidelity``, share that
            matches in all three; ``subject_fidelity``, mean cosine similarity to the images of the subject (which have
            0.72 among themselves, other nines 0.40, other digits 0); ``diversity``. For other digits: ``digit_kept``,
            ``ink_kept``, ``ground_kept``, ``kept``, the corresponding shares; ``drift``, change of the handwriting.
            ``score``: harmonic mean of prompt fidelity, subject fidelity and kept.
        """
        digit, subject = self._classifiers
        shares, kept = follows(digit, images, self.wanted), follows(digit, others, self.others)
        alike = float((directions(subject, images) @ self._subject.mean(0)).mean())
        found = {
            "nine": shares["digit"],
            "ink": shares["ink"],
            "ground": shares["ground"],
            "prompt_fidelity": follow_all(digit, images, self.wanted),
            "subject_fidelity": alike,
            "diversity": diversity(subject, images),
            **{f"{name}_kept": share for name, share in kept.items()},
            "kept": follow_all(digit, others, self.others),
            "drift": drift(subject, self.base_images, others),
        }
        return found | {"score": balance(found["prompt_fidelity"], alike, found["kept"])}

    @cached_property
    def wanted(self) -> list[Prompt]:
        """Prompts for the subject, whose digit is a nine."""
        return split_prompts(self.split, self.count, image.SUBJECT_PROMPT.removeprefix("a "))

    @cached_property
    def others(self) -> list[Prompt]:
        """Prompts for all other digits."""
        return split_prompts(self.split, self.count)

    @cached_property
    def base_images(self) -> Tensor:
        """Images of the prompts ``others`` before finetuning."""
        return self._generate(self.base or base_family(), self.others, _KEPT)

    @cached_property
    def _classifiers(self) -> tuple[Classifier, Classifier]:
        return image.load_classifier("digit"), image.load_classifier("subject")

    @cached_property
    def _subject(self) -> Tensor:
        sources = image.load_sources()
        return directions(self._classifiers[1], compose_all(image.subject_scenes(sources), sources))

    def _generate(self, family: Family, wanted: list[Prompt], offset: int) -> Tensor:
        first = NOISE[self.split] + offset
        texts, seeds = [prompt.text for prompt in wanted], list(range(first, first + len(wanted)))
        return family.generate(texts, seeds, steps=self.steps, guidance=self.guidance).cpu()


def base_family() -> Family:
    """The built-in pipeline, in float32 on the CPU."""
    from orthotune.image.families.registry import open_family

    return open_family(str(image.PIPELINE), torch.float32, torch.device("cpu"))
