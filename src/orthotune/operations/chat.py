"""``chat``: a dialogue with a language model, its adapter switched and weakened while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orthotune.errors import ConfigError, OrthotuneError, nearest
from orthotune.operations.generate import at_strength, check_adapter
from orthotune.operations.generation.adapter_strength import set_strength
from orthotune.operations.generation.decoding import Decoding, answer
from orthotune.operations.generation.open_model import Messages, OpenedModel

#: Each command with its meaning, as ``/help`` lists them.
COMMANDS = {
    "/reset": "forget the dialogue",
    "/strength T": "use the adapter at T: 0 is the base, 1 as trained",
    "/off": "switch the adapter off",
    "/on": "switch the adapter on",
    "/both": "answer without and with the adapter, or with it alone again",
    "/system TEXT": "begin again with a system prompt",
    "/help": "list the commands",
    "/quit": "end",
}


@dataclass
class _State:
    """The dialogue, and how the adapter is used."""

    messages: Messages = field(default_factory=list)
    system: str | None = None
    strength: float = 1.0
    on: bool = True
    both: bool = False

    def start(self) -> Messages:
        return [{"role": "system", "content": self.system}] if self.system else []


def chat(
    opened: OpenedModel,
    lines: Iterable[str],
    write: Callable[[str], None],
    *,
    strength: float = 1.0,
    both: bool = False,
    system: str | None = None,
    plain: bool = False,
    decoding: Decoding | None = None,
) -> Messages:
    """Answer line by line until ``/quit`` or the end of the lines; a mistake in a line is reported, and ends nothing.

    A model without a chat template continues the text of all lines and answers. Where the dialogue outgrows what the
    model can read, its oldest messages are dropped, with a message. A ``KeyboardInterrupt`` within an answer ends this
    answer alone.

    Args:
        opened: the model, from :func:`~orthotune.operations.generation.open_model.open_model`.
        lines: what the user types; a line that begins with a slash is a command.
        write: is given all text, piece by piece.
        strength: of the adapter at first.
        both: answer without the adapter, too; the dialogue goes on with the answer of the adapter.
        system: a system prompt.
        plain: no chat template.
        decoding: how tokens are chosen; None takes the likeliest ones, at most 256.

    Returns:
        The dialogue at the end, each message with ``role`` and ``content``.

    Raises:
        ConfigError: ``strength`` or ``both`` for a model that does not have it.

    Example:
        >>> from orthotune.operations.generation.open_model import open_model
        >>> chat(open_model("text-world"), ["/quit"], print)
        []
    """
    check_adapter(opened, strength, both)
    # Without a template a system prompt is a paragraph before the text, as for `generate`.
    ahead = f"{system}\n\n" if system and (plain or not opened.has_template) else system
    state = _State(system=ahead, strength=strength, both=both)
    state.messages = state.start()
    if opened.adapted:
        set_strength(opened.model, strength)
    for line in lines:
        text = line.strip()
        if not text:
            continue
        try:
            if text.startswith("/"):
                if text.split()[0] in ("/quit", "/exit"):
                    break
                write(_command(opened, state, text) + "\n")
            else:
                _exchange(opened, state, text, write, plain, decoding or Decoding())
        except OrthotuneError as fault:
            write(f"{fault}\n")
        except KeyboardInterrupt:
            write("\n(stopped)\n")
    if opened.adapted:
        set_strength(opened.model, 1.0)
    return state.messages


@dataclass(frozen=True)
class Replied:
    """One exchange of a dialogue.

    Attributes:
        messages: the dialogue with the new message and its answer, from which the next exchange goes on.
        text: the answer, with the adapter at its strength.
        base: the answer without the adapter to the same dialogue; None where it was not asked for.
        notes: that the oldest messages were dropped.
    """

    messages: Messages
    text: str
    base: str | None
    notes: tuple[str, ...] = ()


def reply(
    opened: OpenedModel,
    messages: Messages,
    text: str,
    *,
    strength: float | Mapping[str, float] = 1.0,
    both: bool = False,
    plain: bool = False,
    decoding: Decoding | None = None,
) -> Replied:
    """Answer the next message of a dialogue; as in :func:`chat` it goes on with the answer of the adapter.

    Args:
        opened: the model, from :func:`~orthotune.operations.generation.open_model.open_model`.
        messages: the dialogue so far, each with ``role`` and ``content``; empty at first.
        text: the new message.
        strength: of the adapter, or layer -> strength for some layers; the others keep 1.
        both: answer without the adapter, too.
        plain: no chat template.
        decoding: how tokens are chosen; None takes the likeliest ones, at most 256.

    Raises:
        ConfigError: an empty message, one that the model cannot read, or a strength or ``both`` of a model that does
            not have it.

    Example:
        >>> from orthotune.operations.generation.open_model import open_model
        >>> found = reply(open_model("text-world"), [], "The with statement is", decoding=Decoding(max_tokens=4))
        >>> [one["role"] for one in found.messages]
        ['user', 'assistant']
    """
    if not text.strip():
        raise ConfigError("the message", got="an empty text", needed="a text to answer")
    check_adapter(opened, strength, both)
    decoding, notes = decoding or Decoding(), list[str]()
    asked = [*messages, {"role": "user", "content": text.strip()}]
    tokens, asked = _fitting(opened, asked, decoding, plain, notes.append)
    without = _one(opened, tokens, decoding, _nowhere, on=False) if both else None
    with at_strength(opened, strength):
        found = _one(opened, tokens, decoding, _nowhere, on=True)
    noted = tuple(note.strip() for note in notes)
    return Replied([*asked, {"role": "assistant", "content": found}], found, without, noted)


def _nowhere(_: str) -> None:
    """Where the pieces of an answer go that is returned at once."""


def _command(opened: OpenedModel, state: _State, text: str) -> str:
    word, _, rest = text.partition(" ")
    rest = rest.strip()
    if word == "/help":
        return "\n".join(f"{name:<14} {meaning}" for name, meaning in COMMANDS.items())
    if word in ("/reset", "/system"):
        state.system = rest if word == "/system" else state.system
        state.messages = state.start()
        return "The dialogue is empty." if word == "/reset" else f"System prompt: {rest or 'none'}"
    if word not in ("/strength", "/off", "/on", "/both"):
        known = [name.split()[0] for name in COMMANDS]
        near = nearest(word, known, 1)
        do = f"Did you mean {near[0]}?" if near else "/help lists the commands"
        raise ConfigError(f"command {word}", got="no such command", do=do)
    if not opened.adapted:
        raise ConfigError(f"command {word}", got=f"{opened.source}, a model without an adapter")
    if word == "/strength":
        try:
            value = float(rest)
        except ValueError as fault:
            raise ConfigError(f"/strength {rest}", needed="a number, as /strength 0.5") from fault
        set_strength(opened.model, value)
        state.strength = value
    elif word == "/both":
        state.both = not state.both
    else:
        state.on = word == "/on"
    shown = "off" if not state.on else f"on, strength {state.strength:g}"
    return f"Adapter: {'off and ' if state.both else ''}{shown}"


def _exchange(
    opened: OpenedModel, state: _State, text: str, write: Callable[[str], None], plain: bool, decoding: Decoding
) -> None:
    asked = [*state.messages, {"role": "user", "content": text}]
    tokens, asked = _fitting(opened, asked, decoding, plain, write)
    if state.both and state.on:
        write("[off] ")
        _one(opened, tokens, decoding, write, on=False)
        write(f"[on, {state.strength:g}] ")
    reply = _one(opened, tokens, decoding, write, on=state.on)
    state.messages = [*asked, {"role": "assistant", "content": reply}]


def _one(opened: OpenedModel, tokens: list[int], decoding: Decoding, write: Callable[[str], None], *, on: bool) -> str:
    if opened.adapted and not on:
        with opened.model.disable_adapter():
            text, _ = answer(opened, tokens, decoding, write)
    else:
        text, _ = answer(opened, tokens, decoding, write)
    write("\n")
    return text


def _fitting(
    opened: OpenedModel, asked: Messages, decoding: Decoding, plain: bool, write: Callable[[str], None]
) -> tuple[list[int], Messages]:
    """The dialogue as tokens, without its oldest exchanges where an answer would not fit behind them."""

    def rendered(messages: Messages) -> list[int]:
        return opened.tokens(messages, plain=plain)

    tokens, room, dropped = rendered(asked), opened.room, 0
    wanted = min(decoding.max_tokens, room // 2) if room else 0
    ahead: list[dict[str, Any]] = [one for one in asked[:1] if one["role"] == "system"]
    rest = asked[len(ahead) :]
    while room is not None and len(tokens) + wanted > room and len(rest) > 1:
        rest = rest[2:] if len(rest) > 2 else rest[-1:]
        dropped += 2
        tokens = rendered([*ahead, *rest])
    if dropped:
        write(f"(the oldest {dropped} messages are dropped: {opened.base} reads {room} tokens)\n")
    return tokens, [*ahead, *rest]
