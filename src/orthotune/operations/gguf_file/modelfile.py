"""A Modelfile for Ollama: the file of the model, and its chat template in Ollama's language.

A chat template of transformers is a Jinja program, Ollama's is a Go template. The text around each role's messages is
found by rendering dialogues; a template is translated when what was found renders further dialogues as it does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Dialogue -> text up to where an answer begins.
Render = Callable[[list[dict[str, str]]], str]
_SYSTEM, _USER, _ANSWER = "<<system>>", "<<user>>", "<<answer>>"


@dataclass(frozen=True)
class ChatForm:
    """The text before and after each role's messages.

    Attributes:
        around: role -> text before, text after.
        prompt: text before an answer.
        default_system: system prompt of dialogues without one; "" for none.
    """

    around: dict[str, tuple[str, str]]
    prompt: str
    default_system: str = ""

    def render(self, messages: list[dict[str, str]]) -> str:
        """A dialogue as Ollama renders it."""
        if self.default_system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        return "".join(f"{self.around[m['role']][0]}{m['content']}{self.around[m['role']][1]}" for m in messages) + (
            self.prompt
        )


def chat_form_of(render: Render) -> ChatForm | None:
    """The text around each role's messages, if that is all of a chat template.

    Args:
        render: renders a dialogue up to where an answer begins, without the token that begins a text.

    Returns:
        What renders the same, or None for a template of another form.

    Example:
        >>> def render(messages):
        ...     return "".join(f"[{m['role']}]{m['content']};" for m in messages) + "[assistant]"
        >>> chat_form_of(render).around["user"]
        ('[user]', ';[assistant]')
    """
    system, user, answer = _message("system", _SYSTEM), _message("user", _USER), _message("assistant", _ANSWER)
    try:
        one, two = render([system, user]), render([system, user, answer, user])
        alone = render([user])
        found = _chat_form(one, two, alone)
        if found is None:
            return None
        # Without the sentinels, longer, and with what a default system prompt would stand beside.
        other = [_message("user", "a b"), _message("assistant", "c"), _message("user", "d")]
        checked = [[_message("system", "s"), *other, _message("assistant", "e"), _message("user", "f")], other, [user]]
        return found if all(found.render(messages) == render(messages) for messages in checked) else None
    except (ValueError, KeyError, TypeError):
        return None  # the template refuses a role


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _chat_form(one: str, two: str, alone: str) -> ChatForm | None:
    """From system-user, system-user-answer-user and user, each up to an answer."""
    if not all(two.count(mark) == count for mark, count in ((_SYSTEM, 1), (_USER, 2), (_ANSWER, 1))):
        return None
    before_system, rest = two.split(_SYSTEM)
    between, after_user, tail = rest.split(_USER)
    before_answer, after_answer = after_user.split(_ANSWER)
    begin, _, end = alone.partition(_USER)
    # A user's message that comes first shows where it begins, unless a default system prompt stands before it.
    own = between.endswith(begin) and after_answer.endswith(begin)
    begin_user = begin if own else _common_end(between, after_answer)
    # What follows every user's message belongs to it, also if it is the beginning of an answer.
    end_user = _common_start(before_answer, tail)
    around = {
        "system": (before_system, between.removesuffix(begin_user)),
        "user": (begin_user, end_user),
        "assistant": (before_answer.removeprefix(end_user), after_answer.removesuffix(begin_user)),
    }
    prompt = tail.removeprefix(end_user)
    default = "" if own else begin.removeprefix(before_system).removesuffix(between)
    if end != tail or (not own and f"{before_system}{default}{between}" != begin) or not one.endswith(tail):
        return None
    return ChatForm(around, prompt, default)


def _common_start(one: str, other: str) -> str:
    size = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:size]


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def go_template(form: ChatForm) -> str:
    """The template in Ollama's language.

    Example:
        >>> around = {role: (f"<{role}>", "\\n") for role in ("system", "user", "assistant")}
        >>> print(go_template(ChatForm(around, "<assistant>"))[:65])
        {{- range .Messages }}{{- if eq .Role "system" }}{{ "<system>" }}
    """
    lines = "{{- range .Messages }}"
    for number, (role, (before, after)) in enumerate(form.around.items()):
        lines += f'{{{{- {"else " if number else ""}if eq .Role "{role}" }}}}'
        lines += f"{_text(before)}{{{{ .Content }}}}{_text(after)}"
    return f"{lines}{{{{- end }}}}{{{{- end }}}}{_text(form.prompt)}"


def _text(text: str) -> str:
    """A piece of text as a Go string, so that spaces and newlines stay as they are."""
    # JSON's escapes are Go's, and a text can neither end the string nor the three quotes around the template.
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def modelfile(file: str, tokenizer: Any | None) -> str:
    """The text of a Modelfile.

    Args:
        file: name of the GGUF file beside it.
        tokenizer: of the model, as transformers loads it; None for none.

    Returns:
        ``FROM``, and for a chat model the template, the default system prompt and where an answer ends.
    """
    lines = [f"FROM ./{file}"]
    if tokenizer is None or not getattr(tokenizer, "chat_template", None):
        return lines[0] + "\n"
    begin = tokenizer.bos_token or ""

    def render(messages: list[dict[str, str]]) -> str:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # the engine writes the token that begins a text itself, where the tokenizer does
        return str(text).removeprefix(begin) if _begins(tokenizer) else str(text)

    form = chat_form_of(render)
    if form is None or '"""' in form.default_system:  # which would end the text in a Modelfile
        lines.append("# The chat template is more than text around messages: Ollama takes the one inside the file.")
    else:
        lines.append(f'TEMPLATE """{go_template(form)}"""')
        if form.default_system:
            lines.append(f'SYSTEM """{form.default_system}"""')
    if tokenizer.eos_token and not set('"\\\n') & set(tokenizer.eos_token):
        lines.append(f'PARAMETER stop "{tokenizer.eos_token}"')
    return "\n".join(lines) + "\n"


def _begins(tokenizer: Any) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def tokenizer_of(folder: Path) -> Any | None:
    """The tokenizer in a folder, None if there is none."""
    from transformers import AutoTokenizer

    if not (folder / "tokenizer.json").is_file():
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
