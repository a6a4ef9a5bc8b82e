"""How an answer is decoded, and the tokens of one answer as they are generated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, TextStreamer

from orthotune.errors import ConfigError
from orthotune.operations.generation.open_model import OpenedModel


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen.

    Args:
        max_tokens: the most tokens of an answer.
        temperature: 0 takes the likeliest token each time; above, tokens are sampled.
        top_p: sample among the likeliest tokens of this total probability.
        top_k: sample among so many likeliest tokens; 0 among all.
        repetition_penalty: above 1, tokens that occurred before are less likely.
        seed: of the sampling; an answer depends on the prompt and the seed alone.

    Raises:
        ConfigError: a value out of its range.

    Example:
        >>> Decoding(temperature=0.7, top_p=0.9).sampled
        True
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        checks: tuple[tuple[str, bool, str], ...] = (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < 100, "0 for the likeliest token, or a positive number"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k >= 0, "0 for all tokens, or a positive number"),
            ("repetition_penalty", self.repetition_penalty > 0, "a positive number"),
        )
        for key, fine, needed in checks:
            if not fine:
                raise ConfigError(f"{key}={getattr(self, key)}", needed=needed)
        if not self.sampled and (self.top_p != 1 or self.top_k):
            key = "top_p" if self.top_p != 1 else "top_k"
            raise ConfigError(f"{key}={getattr(self, key)}", got="temperature=0, which samples nothing",
                              do="Add a temperature, as 0.7")  # fmt: skip

    @property
    def sampled(self) -> bool:
        """Whether tokens are sampled."""
        return self.temperature > 0


class _Stream(TextStreamer):
    """Hands on the text as far as its words are complete."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Hand on one piece of text."""
        if text:
            self.write(text)


def answer(
    opened: OpenedModel, prompt: list[int], decoding: Decoding, write: Callable[[str], None] | None = None
) -> tuple[str, int]:
    """Generate one answer, with the adapter as it is switched.

    The cut-offs, penalties and temperature that the model comes with are not used; its end tokens are.

    Args:
        opened: the model.
        prompt: token numbers.
        decoding: how tokens are chosen.
        write: is given the text piece by piece while it is generated.

    Returns:
        The text without special tokens, and its number of tokens.

    Raises:
        ConfigError: the prompt is empty, or leaves no room for an answer.
    """
    room = opened.room
    if not prompt:
        raise ConfigError("the prompt", got="no token", needed="a text")
    if room is not None and len(prompt) >= room:
        raise ConfigError(
            "the prompt", got=f"{len(prompt)} tokens", needed=f"fewer than {room}, all that {opened.base} can read"
        )
    tokenizer, limit = opened.tokenizer, decoding.max_tokens
    ends = _end_tokens(opened)
    config = GenerationConfig(
        max_new_tokens=limit if room is None else min(limit, room - len(prompt)),
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        repetition_penalty=decoding.repetition_penalty,
        **(
            {"do_sample": True, "temperature": decoding.temperature, "top_k": decoding.top_k, "top_p": decoding.top_p}
            if decoding.sampled
            else {"do_sample": False}
        ),
    )
    device = opened.model.get_input_embeddings().weight.device
    ids = torch.tensor([prompt], device=device)
    streamer = None if write is None else _Stream(tokenizer, write)
    with _own_config(opened.model, config), torch.random.fork_rng(_devices()), torch.inference_mode():
        torch.manual_seed(decoding.seed)
        found = opened.model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), streamer=streamer)
    made = found[0, len(prompt) :]
    return str(tokenizer.decode(made, skip_special_tokens=True)), int(made.numel())


@contextmanager
def _own_config(model: Any, config: GenerationConfig) -> Iterator[None]:
    """A blank config in the place of the model's, which would fill in what is not given."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own, base.generation_config = base.generation_config, config
    try:
        yield
    finally:
        base.generation_config = own


def _end_tokens(opened: OpenedModel) -> list[int]:
    base = opened.model.get_base_model() if opened.adapted else opened.model
    own = base.generation_config.eos_token_id
    found = [opened.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return list(dict.fromkeys(int(token) for token in found if token is not None))


def _devices() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
