"""Random generators of the training loop: determined by the seed and the number of the batch, so reproducible."""

from __future__ import annotations

import torch


def generator_for(seed: int, batch: int) -> torch.Generator:
    """A CPU generator for noise and times. The global generators, used by dropout, get the same seed.

    Args:
        seed: of the run.
        batch: number of the batch, counted over all processes from the start of training.

    Example:
        >>> one, same, other = (torch.rand(1, generator=generator_for(0, batch)).item() for batch in (7, 7, 8))
        >>> one == same, one == other
        (True, False)
    """
    mixed = (seed * 1_000_003 + batch) * 1_009
    # splitmix64 (Steele et al. 2014): neighbouring numbers give unrelated seeds.
    mixed = (mixed + 0x9E3779B97F4A7C15) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    mixed = (mixed ^ (mixed >> 31)) >> 1
    torch.manual_seed(mixed)
    return torch.Generator().manual_seed(mixed)
