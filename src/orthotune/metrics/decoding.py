"""Rows of tokens that a causal language model continues, by its own probabilities alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig


@torch.no_grad()
def continued(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], limit: int, *, sample: bool = False
) -> list[list[int]]:
    """What a model writes after prompts, all of them in one batch.

    The cut-offs, penalties and temperatures that a model comes with are not used.

    Args:
        model: a causal language model, or a ``PeftModel`` around one, which counts as it is switched.
        tokenizer: its tokenizer, which knows the padding and an end token.
        prompts: token numbers; shorter ones are padded on the left.
        limit: the most tokens that are written after a prompt.
        sample: sample at temperature 1; otherwise each token is the likeliest one.

    Returns:
        For each prompt the written tokens, the end token included if there is one.

    Example:
        >>> continued(model, tokenizer, [[5, 6], [7]], 2)  # doctest: +SKIP
        [[12, 3], [9, 0]]
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    end, longest = _end_tokens(base, tokenizer), max(map(len, prompts))
    shape, device = (len(prompts), longest), next(base.parameters()).device
    ids, mask = torch.full(shape, tokenizer.pad_token_id), torch.zeros(shape, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    # A blank config in the place of the model's own, whose cut-offs and penalties would fill in what is not given here.
    plain = GenerationConfig(
        max_new_tokens=limit, eos_token_id=end, pad_token_id=tokenizer.pad_token_id, use_cache=True, **sampled
    )
    own, base.generation_config = base.generation_config, plain
    was_training = model.training
    model.eval()
    try:
        written = base.generate(ids.to(device), attention_mask=mask.to(device)).tolist()
    finally:
        base.generation_config = own
        model.train(was_training)
    return [_until_end(row[longest:], end) for row in written]


def _end_tokens(base: nn.Module, tokenizer: Any) -> list[int]:
    own: Any = base.generation_config.eos_token_id  # type: ignore[union-attr]
    more = own if isinstance(own, list) else [own]
    return sorted({tokenizer.eos_token_id, *(token for token in more if token is not None)})


def _until_end(row: list[int], end: list[int]) -> list[int]:
    """Without what stands after the end of a text that was done before the others."""
    closed = next((place for place, token in enumerate(row) if token in end), len(row))
    return row[: closed + 1]
