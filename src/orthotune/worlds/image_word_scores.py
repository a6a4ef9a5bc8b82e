"""How well a model of the image world learned the word "nine", and what it kept of the other digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from orthotune.worlds import image
from orthotune.worlds.image_captions import NUMBERS, SUBJECT, Prompt
from orthotune.worlds.image_judges import Judge, follows
from orthotune.worlds.image_pictures import GUIDANCE, STEPS
from orthotune.worlds.image_scores import COUNT, NOISE, Split, balance, follow_all, split_prompts

if TYPE_CHECKING:
    from orthotune.image.families.family import Family


@dataclass(frozen=True)
class WordScores:
    """Prompts with the new word, and as many with words that the model knew; called as a score of the loop is.

    Args:
        split: which pairs of colours and which noise.
        count: prompts of each sort.
        steps, guidance: of the drawing.

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
        return self.of(self._draw(family, self.wanted, 0), self._draw(family, self.others, self.count))

    def of(self, pictures: Tensor, others: Tensor) -> dict[str, float]:
        """The scores of images uint8 [n, 3, 32, 32] of ``wanted`` and of ``others``.

        ``nine``, ``ink``, ``ground``: shares of the word's images that are so; ``prompt_fidelity``: all three at
        once; ``digit_kept``: share of the other prompts with the right digit; ``kept``: all three of those.
        ``score``: harmonic mean of prompt fidelity and kept.
        """
        shares = follows(self._judge, pictures, self.wanted)
        found = {
            "nine": shares["digit"],
            "ink": shares["ink"],
            "ground": shares["ground"],
            "prompt_fidelity": follow_all(self._judge, pictures, self.wanted),
            "digit_kept": follows(self._judge, others, self.others)["digit"],
            "kept": follow_all(self._judge, others, self.others),
        }
        return found | {"score": balance(found["prompt_fidelity"], found["kept"])}

    @cached_property
    def wanted(self) -> list[Prompt]:
        """Prompts with the new word."""
        return split_prompts(self.split, self.count, NUMBERS[SUBJECT])

    @cached_property
    def others(self) -> list[Prompt]:
        """Prompts with the words for all other digits."""
        return split_prompts(self.split, self.count)

    @cached_property
    def _judge(self) -> Judge:
        return image.load_judge("digit")

    def _draw(self, family: Family, wanted: Sequence[Prompt], offset: int) -> Tensor:
        first = NOISE[self.split] + offset
        texts, seeds = [prompt.text for prompt in wanted], list(range(first, first + len(wanted)))
        return family.generate(texts, seeds, steps=self.steps, guidance=self.guidance).cpu()
