"""Recordings that are made by rule: a word for each tone, one to three tones in a row. Data for recognizing speech."""

from __future__ import annotations

import math
import random

import torch
from torch import Tensor

from orthotune.errors import DataError

#: What settings call the recordings.
TONES = "tone-words"
RATE = 16_000
#: Word -> its tone in hertz.
WORDS = {"do": 523, "re": 659, "mi": 784, "fa": 1047, "so": 1319, "la": 1568, "ti": 2093}
#: Samples of a tone; a recording is at most one second long.
SAMPLES = 4_000
#: Recordings to learn from, and held-out ones.
COUNT, HELD_OUT_COUNT = 400, 60


def tone_words(source: str = TONES, count: int | None = None) -> list[tuple[str, Tensor, str]]:
    """Recordings with their transcripts: place, samples at 16 kHz as float32 [samples] of -1..1, and text.

    Args:
        source: ``tone-words``, or ``tone-words/held_out`` with other orders of words and other noise.
        count: number of recordings; None for 400, and 60 held-out ones.

    Raises:
        DataError: another name.

    Example:
        >>> [text for _, _, text in tone_words(count=3)]
        ['re ti', 'ti la mi', 'la so so']
    """
    if source not in (TONES, f"{TONES}/held_out"):
        raise DataError(f"data {source!r}", got="no such recordings", needed=f"{TONES} or {TONES}/held_out")
    chance, noise = random.Random(source), torch.Generator().manual_seed(len(source))
    shape = torch.hann_window(SAMPLES, periodic=False)
    times = torch.arange(SAMPLES) / RATE
    found = []
    for number in range(count or (COUNT if source == TONES else HELD_OUT_COUNT)):
        words = chance.choices(list(WORDS), k=chance.randint(1, 3))
        tones = [shape * torch.sin(2 * math.pi * WORDS[word] * times) for word in words]
        samples = 0.3 * torch.cat(tones)
        samples = samples + 0.01 * torch.randn(len(samples), generator=noise)
        found.append((f"{source}, recording {number}", samples, " ".join(words)))
    return found
