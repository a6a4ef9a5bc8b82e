"""Scores of a model of the image world that learned the word "nine": the new word, and the other digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from orthotune.worlds import image
from orthotune.worlds.image_captions import NUMBERS, SUBJECT, Prompt
from orthotune.worlds.image_classifiers import Classifier, follows
from orthotune.worlds.image_samples import GUIDANCE, STEPS
from orthotune.worlds.image_scores import COUNT, NOISE, Split, balance, follow_all, split_prompts

if TYPE_CHECKING:
    from orthotune.image.families.family import Family


@dataclass(frozen=True)
class WordScores:
    """Scores a model on prompts with the new word and on prompts with known words; called by the training loop.

    Args:
        split: of pairs of colours and of noise.
        count: number of prompts of each kind.
        steps: of the sampler.
        guidance: scale of the classifier-free guidance.

    Example:
        >>> WordScores("test", count=1).wanted[0].text.split()[2]
        'nine'
    """

    split: Split = "validation"
    count: int = COUNT
    steps: int = STEPS
    guidance: float = GUIDANCE

    def __call__(self, step: int, family: Family) -> dict[str, float]:
        """The scores of ``family``; see :meth:`of` for their names."""
        return self.of(self._generate(family, self.wanted, 0), self._generate(family, self.others, self.count))

    def of(self, images: Tensor, others: Tensor) -> dict[str, float]:
        """The scores of generated images.

        Args:
            images: of the prompts ``wanted``, uint8 [n, 3, 32, 32].
            others: of the prompts ``others``, uint8 [n, 3, 32, 32].

        Returns:
            For the new word: ``nine``, ``ink``, ``ground``, shares of matching images; ``prompt_fidelity``, share that
            matches in all three. For other words: ``digit_kept``, share with the right digit; ``kept``, share that
            matches in all three. ``score``: harmonic mean of prompt fidelity and kept.
        """
        shares = follows(self._classifier, images, self.wanted)
        found = {
            "nine": shares["digit"],
            "ink": shares["ink"],
            "ground": shares["ground"],
            "prompt_fidelity": follow_all(self._classifier, images, self.wanted),
            "digit_kept": follows(self._classifier, others, self.others)["digit"],
            "kept": follow_all(self._classifier, others, self.others),
        }
        return found | {"score": balance(found["prompt_fidelity"], found["kept"])}

    @cached_property
    def wanted(self) -> list[Prompt]:
        """Prompts with the new word."""
        return split_prompts(self.split, self.count, NUMBERS[SUBJECT])

    @cached_property
    def others(self) -> list[Prompt]:
        """Prompts with the words for the other digits."""
        return split_prompts(self.split, self.count)

    @cached_property
    def _classifier(self) -> Classifier:
        return image.load_classifier("digit")

    def _generate(self, family: Family, wanted: Sequence[Prompt], offset: int) -> Tensor:
        first = NOISE[self.split] + offset
        texts, seeds = [prompt.text for prompt in wanted], list(range(first, first + len(wanted)))
        return family.generate(texts, seeds, steps=self.steps, guidance=self.guidance).cpu()
