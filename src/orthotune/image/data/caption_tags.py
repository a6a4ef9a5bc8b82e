"""Captions of tags: their order varies from epoch to epoch, so that a model learns each tag and not their order."""

from __future__ import annotations

import random
from dataclasses import dataclass

SEPARATOR = ","


@dataclass(frozen=True)
class Tags:
    """How captions of tags vary. Tags are divided by commas.

    Args:
        shuffle: put the tags of a caption in another order in each epoch.
        keep: so many tags at the start stay where they are, as the word for a subject.
        drop: share of the other tags that are left away, from 0 to 1.

    Example:
        >>> tags = Tags(shuffle=True, keep=1)
        >>> tags.shuffled("sks cat, red, sitting, indoors", seed=0, index=4)
        'sks cat, sitting, red, indoors'
    """

    shuffle: bool = False
    keep: int = 0
    drop: float = 0.0

    @property
    def vary(self) -> bool:
        """Whether an image has other captions in other epochs."""
        return self.shuffle or self.drop > 0

    def shuffled(self, caption: str, seed: int, index: int) -> str:
        """The caption of an image in an epoch.

        Args:
            caption: as it was read.
            seed: of the run.
            index: of the image, with the epoch.
        """
        if not self.vary:
            return caption
        tags = [tag.strip() for tag in caption.split(SEPARATOR) if tag.strip()]
        first, rest = tags[: self.keep], tags[self.keep :]
        rng = random.Random(f"{seed} tags {index}")
        rest = [tag for tag in rest if not self.drop or rng.random() >= self.drop]
        if self.shuffle:
            rng.shuffle(rest)
        return f"{SEPARATOR} ".join(first + rest)


#: Captions are used as they were read.
UNCHANGED = Tags()
