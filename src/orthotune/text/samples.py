"""Texts before and after a training: fixed prompts, answered by the base and by what was trained, token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    after = texts_at(trained, tokenizer, prompts, limit)
    with adapter_off(trained) if base is None else nullcontext():
        before = texts_at(trained if base is None else base, tokenizer, prompts, limit)
    return [
        {"prompt": prompt, "before": one, "after": other}
        for (prompt, one), (_, other) in zip(before, after, strict=True)
    ]


def samples_now(
    model: Any, tokenizer: Any, prompts: Sequence[str], step: int, before: Sequence[Mapping[str, Any]], adapted: bool
) -> list[dict[str, Any]]:
    """The samples of a model in the middle of its training, behind those of earlier steps.

    Args:
        model: as it is after a step.
        tokenizer: of the model.
        prompts: as for :func:`samples`.
        step: the step.
        before: the samples so far; those of the same step are replaced.
        adapted: the model has an adapter that can be switched off: the first samples are preceded by those of step 0.

    Returns:
        ``step``, ``prompt`` and ``text`` of each, in the order of the steps.
    """
    kept = [dict(row) for row in before if isinstance(row.get("step"), int) and row["step"] != step]
    found = [{"step": step, "prompt": prompt, "text": text} for prompt, text in texts_at(model, tokenizer, prompts)]
    if adapted and step and not any(row["step"] == 0 for row in kept):
        with adapter_off(model):
            kept += [
                {"step": 0, "prompt": prompt, "text": text} for prompt, text in texts_at(model, tokenizer, prompts)
            ]
    return sorted(kept + found, key=lambda row: int(row["step"]))


def texts_at(model: Any, tokenizer: Any, prompts: Sequence[str], limit: int = TOKENS) -> list[tuple[str, str]]:
    """What a model writes after prompts as it is, the likeliest token each time.

    Args:
        model: a causal language model.
        tokenizer: of the model.
        prompts: texts; those that the model cannot read, or that have no tokens, are skipped.
        limit: the most tokens of an answer.

    Returns:
        Prompt and text of each.
    """
    room = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**30
    rows = [(prompt, _tokens(tokenizer, prompt)) for prompt in prompts]
    rows = [(prompt, ids) for prompt, ids in rows if ids and len(ids) < room]
    if not rows:
        return []
    ids = [one for _, one in rows]
    written = continued(model, tokenizer, ids, min(limit, room - max(map(len, ids))))
    shown = [tokenizer.decode(row, skip_special_tokens=True) for row in written]
    return [(prompt, text) for (prompt, _), text in zip(rows, shown, strict=True)]


def _tokens(tokenizer: Any, prompt: str) -> list[int]:
    if getattr(tokenizer, "chat_template", None):
        asked = [{"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True)["input_ids"])
    return list(tokenizer(prompt)["input_ids"])
