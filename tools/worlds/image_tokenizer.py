"""A byte-level BPE tokenizer in the format of CLIP, in which each word of the captions is one token."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

LENGTH = 20
_END = "</w>"


def new_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """A tokenizer with 256 bytes, the same bytes at the end of a word, the merges for ``words``, start and end tokens.

    Other words are encoded as bytes, so that there is no unknown token.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = _apply([*word[:-1], word[-1] + _END], merges)
        # Merges are applied by rank, so that later merges do not change the tokens of earlier words.
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = _apply(pieces, merges)
    tokens = [*letters, *(letter + _END for letter in letters), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=merges, model_max_length=LENGTH
    )


def _apply(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """``pieces`` after byte-pair merging: the merge of the lowest rank first."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    while True:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)), default=None)
        if best is None or best not in ranks:
            return pieces
        at = pairs.index(best)
        pieces = [*pieces[:at], "".join(best), *pieces[at + 2 :]]
