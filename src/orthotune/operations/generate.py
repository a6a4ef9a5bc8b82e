"""``generate``: what a language model writes after prompts, with its adapter and without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import ConfigError
from orthotune.operations.generation.adapter_strength import set_strength
from orthotune.operations.generation.decoding import Decoding, answer
from orthotune.operations.generation.open_model import OpenedModel, open_model

#: Called with the number of the prompt, whether the adapter is on, and the next piece of the text.
Write = Callable[[int, bool, str], None]


@dataclass(frozen=True)
class Generated:
    """What was generated after one prompt.

    Attributes:
        prompt: as it was given.
        text: the answer, with the adapter at ``strength``.
        base: the answer without the adapter; None where it was not asked for.
        strength: of the adapter, or of each of its layers that was named; None of a model without one.
        tokens: of ``text``.
    """

    prompt: str
    text: str
    base: str | None
    strength: float | Mapping[str, float] | None
    tokens: int


def generate(
    source: str | Path | OpenedModel,
    prompts: str | Sequence[str],
    *,
    both: bool = False,
    strength: float | Mapping[str, float] = 1.0,
    system: str | None = None,
    plain: bool = False,
    decoding: Decoding | None = None,
    write: Write | None = None,
    **loading: Any,
) -> list[Generated]:
    """Let a run, an adapter or a model answer prompts.

    Prompts go through the chat template of the tokenizer; a model without one continues them as they are.

    Args:
        source: the directory of a run, an adapter of any readable format, a model (path, hub name or word), or what
            :func:`~orthotune.operations.generation.open_model.open_model` returned.
        prompts: one, or several, each answered alone.
        both: answer without the adapter, too.
        strength: of the adapter: every angle of a rotation, or the change by a LoRA, times this; 0 is the base. Or
            layer -> strength for some layers, by their names in the base; the others keep 1.
        system: a system prompt before each of them.
        plain: continue the prompts as they are, without the chat template.
        decoding: how tokens are chosen; None takes the likeliest ones, at most 256.
        write: is given the texts piece by piece while they are generated.
        **loading: ``base``, ``dtype`` and ``quantization`` of ``open_model``.

    Returns:
        One entry for each prompt, in their order.

    Raises:
        OrthotuneError: ``source`` is no language model, or damaged.
        ConfigError: an empty prompt, a strength that is not finite or that the adapter does not have, ``both`` of a
            model without an adapter, or a system prompt that the chat template refuses.

    Example:
        >>> generate("text-world", "The with statement is", decoding=Decoding(max_tokens=4))[0].tokens
        4
    """
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    if not asked or any(not one.strip() for one in asked):
        raise ConfigError("the prompt", got="an empty text", needed="a text to answer")
    opened = source if isinstance(source, OpenedModel) else open_model(source, **loading)
    check_adapter(opened, strength, both)
    decoding = decoding or Decoding()
    found = []
    for number, prompt in enumerate(asked):
        tokens = opened.tokens(_dialogue(prompt, system, plain or not opened.has_template), plain=plain)
        without = None
        if both:
            with opened.model.disable_adapter():
                without = answer(opened, tokens, decoding, _piece(write, number, False))[0]
        with at_strength(opened, strength):
            text, count = answer(opened, tokens, decoding, _piece(write, number, True))
        found.append(Generated(prompt, text, without, strength if opened.adapted else None, count))
    return found


def _dialogue(prompt: str, system: str | None, plain: bool) -> list[dict[str, str]]:
    """The messages of one prompt; without a template, a system prompt is a paragraph before it."""
    ahead = [{"role": "system", "content": f"{system}\n\n" if plain else system}] if system else []
    return [*ahead, {"role": "user", "content": prompt}]


def check_adapter(opened: OpenedModel, strength: float | Mapping[str, float], both: bool) -> None:
    """Refuse what needs an adapter of a model that has none, and strengths that it does not have.

    Raises:
        ConfigError: names what was asked for.
    """
    if opened.adapted:
        set_strength(opened.model, strength)
        set_strength(opened.model, 1.0)
        return
    if both or strength != 1:
        raise ConfigError(
            "both answers" if both else f"strength {strength}",
            got=f"{opened.source}, a model without an adapter",
            needed="a run or an adapter of OFT or LoRA",
            do="Of a run that trained the entire model, ask its base by its own name",
        )


@contextmanager
def at_strength(opened: OpenedModel, strength: float | Mapping[str, float]) -> Iterator[None]:
    """The adapter at a strength, for a block; without effect for a model without one.

    Args:
        opened: the model.
        strength: as for :func:`generate`.
    """
    if not opened.adapted:
        yield
        return
    set_strength(opened.model, strength)
    try:
        yield
    finally:
        set_strength(opened.model, 1.0)


def _piece(write: Write | None, number: int, on: bool) -> Callable[[str], None] | None:
    return None if write is None else lambda text: write(number, on, text)
