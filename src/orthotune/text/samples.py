"""Texts before and after a training: fixed prompts, answered by the base and by what was trained, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from orthotune.files.installed_worlds import TEXT_WORLD
from orthotune.metrics.decoding import continued
from orthotune.runs.adapter_off import adapter_off

#: Prompts where the settings name none; the small built-in model continues sentences about Python.
PROMPTS = ("Write one sentence about the sea.", "What is the capital of France?", "Explain what a rotation is.")
WORLD_PROMPTS = ("The with statement is used to", "A list is", "def main():")
#: Most tokens of an answer.
TOKENS = 40


def default_prompts(model: str) -> tuple[str, ...]:
    """The prompts for a model.

    Args:
        model: as the settings name it.

    Example:
        >>> default_prompts("text-world")[1]
        'A list is'
    """
    return WORLD_PROMPTS if model == TEXT_WORLD else PROMPTS


def samples(
    trained: Any, base: Any, tokenizer: Any, prompts: Sequence[str], limit: int = TOKENS
) -> list[dict[str, str]]:
    """What the base and the trained model write after prompts, the likeliest token each time.

    Args:
        trained: the model after training.
        base: the model before training in full; None for an adapter, which is switched off for its base.
        tokenizer: of both; prompts go through its chat template if it has one.
        prompts: texts; those that the model cannot read, or that have no tokens, are skipped.
        limit: the most tokens of an answer.

    Returns:
        ``prompt``, ``before`` and ``after`` of each prompt.

    Example:
        >>> samples(model, None, tokenizer, ["Hello"])  # doctest: +SKIP
        [{'prompt': 'Hello', 'before': ' world', 'after': ', stranger'}]
    """
    room = getattr(trained.config.get_text_config(), "max_position_embeddings", None) or 2**30
    rows = [(prompt, _tokens(tokenizer, prompt)) for prompt in prompts]
    rows = [(prompt, ids) for prompt, ids in rows if ids and len(ids) < room]
    if not rows:
        return []
    ids = [one for _, one in rows]
    most = min(limit, room - max(map(len, ids)))
    after = continued(trained, tokenizer, ids, most)
    with adapter_off(trained) if base is None else nullcontext():
        before = continued(trained if base is None else base, tokenizer, ids, most)
    shown = [[tokenizer.decode(row, skip_special_tokens=True) for row in side] for side in (before, after)]
    return [
        {"prompt": prompt, "before": one, "after": other} for (prompt, _), one, other in zip(rows, *shown, strict=True)
    ]


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        asked = [{"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"])
    return list(tokenizer(prompt)["input_ids"])
