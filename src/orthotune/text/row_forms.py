"""The forms in which people keep texts and dialogues, and how a row of each form becomes one that recipes read.

A new form is a function and an entry of ``FORMS``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.files.json_file import json_value
from orthotune.runs.data_files import Row

#: Names of speakers in ShareGPT's ``from`` and elsewhere, and the roles that chat templates know for them.
SPEAKERS: dict[str, str] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
#: Roles of messages that chat templates have.
ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython", "environment", "context")


@dataclass(frozen=True)
class Form:
    """How rows of one form look, and what they become.

    Args:
        name: as ``data_format`` has the form, and as messages name it.
        columns: that every row has; rows are recognized by them.
        optional: further columns that are read.
        format: of the rows that recipes read: ``text``, ``prompt-completion`` or ``messages``.
        read: from a row with these columns, its place for messages, and the names of roles, to a row of ``format``.
    """

    name: str
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    format: str
    read: Callable[[Row, str, Mapping[str, str]], Row]

    def missing(self, row: Row) -> list[str]:
        """The columns that a row of this form lacks.

        Example:
            >>> FORMS["prompt-completion"].missing({"prompt": "1 + 1 ="})
            ['completion']
        """
        return [column for column in self.columns if row.get(column) is None]


def is_dialogue(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role and with content or calls of tools.

    Example:
        >>> is_dialogue([{"role": "user", "content": "Hi"}]), is_dialogue("Hi")
        (True, False)
    """
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and ("content" in message or bool(message.get("tool_calls")))
        for message in value
    )


def form_of(row: Row, source: str) -> Form:
    """The form that a row has by its columns; the first one of ``FORMS`` where several fit.

    Args:
        row: with the columns of the source.
        source: for the message.

    Raises:
        DataError: the columns of no form.

    Example:
        >>> form_of({"instruction": "Add.", "input": "1, 1", "output": "2"}, "sums").name
        'alpaca'
    """
    if fits := forms_of(row):
        return fits[0]
    raise DataError(
        f"data {source!r}",
        got=f"columns {', '.join(sorted(map(str, row))) or '(none)'}",
        needed=" or ".join(" + ".join(form.columns) for form in FORMS.values()),
        do=_renaming(row),
    )


def forms_of(row: Row) -> list[Form]:
    """All forms whose columns a row has, the one that is read first.

    Args:
        row: with the columns of the source.

    Example:
        >>> [form.name for form in forms_of({"instruction": "Add.", "output": "2", "text": "Add. 2"})]
        ['text', 'alpaca']
    """
    full = [form for form in FORMS.values() if not form.missing(row)]
    # A column of nulls says no more than a column that is not there, except where no other form fits.
    return full or [form for form in FORMS.values() if row.keys() >= set(form.columns)]


def renamed(row: Row, columns: Mapping[str, str], place: str) -> Row:
    """A row in which columns have the names that forms know.

    Args:
        row: with the names of the source.
        columns: from the name in a form to the name in the source, as ``{"prompt": "question"}``.
        place: of the row, for messages.

    Raises:
        DataError: the row has no such column.

    Example:
        >>> renamed({"question": "1 + 1 =", "id": 4}, {"prompt": "question"}, "line 1")
        {'id': 4, 'prompt': '1 + 1 ='}
    """
    if not columns:
        return row
    for name, other in columns.items():
        if other not in row:
            close = nearest(other, map(str, row), count=1)
            swapped = name in row and other in KNOWN_COLUMNS
            raise DataError(
                f"{place}: columns has {name}: {other}",
                got=f"columns {', '.join(sorted(map(str, row)))}",
                do=f"Write columns={{{other}: {name}}}"
                if swapped
                else f"Did you mean {close[0]!r}?"
                if close
                else None,
            )
    kept = {name: value for name, value in row.items() if name not in columns and name not in columns.values()}
    return kept | {name: row[other] for name, other in columns.items()}


def refuse_other_form(row: Row, form: Form, place: str, forced: bool = False) -> None:
    """Refuse a row that lacks a column of the form that its source is read as.

    Args:
        row: with the columns of the source.
        form: that the source is read as.
        place: of the row, for messages.
        forced: the form was named, and not recognized by the first row.

    Raises:
        DataError: names the column, and the form that the row has instead, if any.
    """
    missing = form.missing(row)
    if not missing:
        return
    other = next((one.name for one in FORMS.values() if not one.missing(row)), None)
    got = f"columns {', '.join(sorted(str(key) for key in row if row[key] is not None)) or '(none)'}"
    raise DataError(
        place,
        got=got + (f", which is the form {other}" if other else ""),
        needed=f"{' and '.join(missing)} (the data is read as {form.name})",
        do=f"Leave data_format out, or say which column is which: columns={{{missing[0]}: NAME}}"
        if forced
        else "Keep rows of each form in a file of their own, and name both: data=[{path: A}, {path: B}]"
        if other
        else None,
    )


def _renaming(row: Row) -> str:
    first = next((str(name) for name in row), "question")
    return f"Rename the columns, or say which is which: columns={{text: {first}}}"


def _text(row: Row, place: str, roles: Mapping[str, str]) -> Row:
    return {"text": _string(row["text"], "text", place)}


def _prompt_completion(row: Row, place: str, roles: Mapping[str, str]) -> Row:
    found: Row = {}
    for column in ("prompt", "completion"):
        # A prompt may be JSON that is meant as text.
        value = parsed if is_dialogue(parsed := _parsed(row[column])) and parsed else row[column]
        if not isinstance(value, str) and not is_dialogue(value):
            raise _unfit(value, column, "a string", place)
        found[column] = value if isinstance(value, str) else _as_templates_read(value, roles)
    texts = [isinstance(value, str) for value in found.values()]
    if any(texts) and not all(texts):
        raise DataError(
            place, got="a string beside a list of messages", needed="prompt and completion of the same kind"
        )
    return found | ({} if any(texts) else _tools(row, place))


def _messages(row: Row, place: str, roles: Mapping[str, str]) -> Row:
    messages = _parsed(row["messages"])
    if not is_dialogue(messages):
        raise _unfit(row["messages"], "messages", "a list of {role, content}", place)
    return {"messages": _as_templates_read(messages, roles), **_tools(row, place)}


def _sharegpt(row: Row, place: str, roles: Mapping[str, str]) -> Row:
    spoken = _parsed(row["conversations"])
    if is_dialogue(spoken):
        messages = _as_templates_read(spoken, roles)
    elif isinstance(spoken, list) and all(isinstance(one, dict) and {"from", "value"} <= one.keys() for one in spoken):
        messages = [_message(one, number, place, roles) for number, one in enumerate(spoken, 1)]
    else:
        raise _unfit(row["conversations"], "conversations", "a list of {from, value}", place)
    if (system := row.get("system")) and messages and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": _string(system, "system", place)}, *messages]
    return {"messages": messages, **_tools(row, place)}


def _message(spoken: dict[str, Any], number: int, place: str, roles: Mapping[str, str]) -> dict[str, Any]:
    """The message that one ``{from, value}`` of ShareGPT is."""
    speaker, value = spoken["from"], spoken["value"]
    role = {**SPEAKERS, **roles}.get(str(speaker))
    if role is None:
        close = nearest(str(speaker), SPEAKERS, count=1)
        raise DataError(
            f"{place}, message {number}",
            got=f"from: {speaker!r}",
            needed=f"one of {', '.join(SPEAKERS)}",
            do=f"Did you mean {close[0]!r}?" if close else f"Say who that is: roles={{{speaker}: user}}",
        )
    if speaker == "function_call":
        return {"role": role, "content": "", "tool_calls": _calls(value, f"{place}, message {number}")}
    return {"role": role, "content": _string(value, "value", f"{place}, message {number}")}


def _calls(value: Any, place: str) -> list[dict[str, Any]]:
    """Calls of tools, which ShareGPT has as the JSON of one or of several."""
    found = _parsed(value)
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise _unfit(value, "value", 'the JSON of a call of a tool, as {"name": "f", "arguments": {}}', place)
    return [
        {"type": "function", "function": {"name": call["name"], "arguments": _parsed(call.get("arguments", {}))}}
        for call in calls
    ]


def _alpaca(row: Row, place: str, roles: Mapping[str, str]) -> Row:
    asked = _string(row["instruction"], "instruction", place)
    if row.get("input"):
        asked += f"\n\n{_string(row['input'], 'input', place)}"
    earlier = _earlier(row.get("history"), place)
    if row.get("system"):
        earlier.insert(0, {"role": "system", "content": _string(row["system"], "system", place)})
    answer = _string(row["output"], "output", place)
    found: Row = {
        "prompt": [*earlier, {"role": "user", "content": asked}] if asked.strip() else [],
        "completion": [{"role": "assistant", "content": answer}] if answer.strip() else [],
    }
    # A model without a chat template is asked with the instruction alone.
    return found if earlier else found | {"instruction": asked}


def _earlier(history: Any, place: str) -> list[dict[str, Any]]:
    pairs = _parsed(history) or []
    if not isinstance(pairs, list) or not all(isinstance(one, list | tuple) and len(one) == 2 for one in pairs):
        raise _unfit(history, "history", "a list of [instruction, output]", place)
    speakers = ("user", "assistant")
    return [
        {"role": role, "content": _string(text, "history", place)}
        for pair in pairs
        for role, text in zip(speakers, pair, strict=True)
    ]


def _as_templates_read(messages: list[dict[str, Any]], roles: Mapping[str, str]) -> list[dict[str, Any]]:
    """Messages with the roles of templates, calls whose arguments are objects, and no fields that are null.

    OpenAI has the arguments of a call as JSON, which templates would write as a string. Tables give every message the
    fields of all messages, and a template that asks whether a message has calls finds a null.
    """
    # Gemini's "model" is no role that most templates know: they would refuse the row, or leave the message out.
    spoken = {name: role for name, role in SPEAKERS.items() if name not in ROLES}
    found = []
    for message in messages:
        message = {name: value for name, value in message.items() if value is not None or name == "content"}
        message["role"] = {**spoken, **roles}.get(message["role"], message["role"])
        if message.get("tool_calls"):
            message["tool_calls"] = [_call_of(call) for call in message["tool_calls"]]
        found.append(message)
    return found


def _call_of(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := _parsed(function.get("arguments")), dict):
        return call
    return call | {"function": function | {"arguments": arguments}}


def _tools(row: Row, place: str) -> Row:
    """The tools of a dialogue, as JSON: rows have tools of other fields, which a table would give each other."""
    tools = row.get("tools")
    if not tools:
        return {}
    if not isinstance(_parsed(tools), list):
        raise _unfit(tools, "tools", 'a list of tools, or its JSON, as [{"type": "function", ...}]', place)
    return {"tools": tools if isinstance(tools, str) else json.dumps(tools)}


def _parsed(value: Any) -> Any:
    """A value that a table has as its JSON, since it has no lists; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", "[[", "{", "[]")):
        return value
    try:
        return json_value(value)
    except ValueError:
        return value


def _string(value: Any, column: str, place: str) -> str:
    if not isinstance(value, str):
        raise _unfit(value, column, "a string", place)
    return value


def _unfit(value: Any, column: str, needed: str, place: str) -> DataError:
    return DataError(f"{place}: column {column!r}", got=f"{type(value).__name__} {str(value)[:40]!r}", needed=needed)


#: By name. Asked in this order: a dialogue export often carries its rendered text beside the messages. The first three
#: are older than the others, and runs that read them are resumed.
FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form("messages", ("messages",), ("tools",), "messages", _messages),
        Form("prompt-completion", ("prompt", "completion"), ("tools",), "prompt-completion", _prompt_completion),
        Form("text", ("text",), (), "text", _text),
        Form("sharegpt", ("conversations",), ("system", "tools"), "messages", _sharegpt),
        Form("alpaca", ("instruction", "output"), ("input", "system", "history"), "prompt-completion", _alpaca),
    )
}
KNOWN_COLUMNS = {column for form in FORMS.values() for column in (*form.columns, *form.optional)}
