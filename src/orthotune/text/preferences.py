"""Preferences to learn from: pairs of a chosen and a rejected answer, or single answers with a label."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.runs.data_files import Row
from orthotune.text.data import Examples, hold_out, is_dialogue

#: The two forms, as in :attr:`Examples.format`.
PAIRS, LABELLED = "pairs", "labelled"
COLUMNS: dict[str, tuple[str, ...]] = {PAIRS: ("chosen", "rejected"), LABELLED: ("completion", "label")}
#: Spellings of a label in tables whose values are texts.
LABELS: dict[Any, bool] = {"true": True, "false": False, "1": True, "0": False, 1: True, 0: False}


@dataclass(frozen=True)
class Preferences(Examples):
    """Examples whose rows have ``prompt``, and ``chosen`` and ``rejected`` or ``completion`` and ``label``.

    Rows may have ``tools`` (JSON) and ``margin`` as well. Either all prompts and answers are texts, or all are lists of
    messages. ``equal`` pairs of the source have the same answer twice and are skipped.
    """

    equal: int = 0


def pairs_of(rows: Sequence[tuple[str, Row]], source: str) -> Preferences:
    """``rows``, each with its place, as pairs; rows with an empty answer or twice the same one are skipped.

    A row without ``prompt`` has its prompt at the beginning of both answers.

    Args:
        rows: with the columns of the source.
        source: for messages.

    Raises:
        DataError: no rows, a column that is missing, or a value of another kind; names the place.

    Example:
        >>> found = pairs_of([("line 1", {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"})], "sums")
        >>> found.rows, found.equal
        ([{'prompt': '1 + 1 =', 'chosen': ' 2', 'rejected': ' 3'}], 0)
    """
    return _read(rows, source, PAIRS, _pair)


def labelled_of(rows: Sequence[tuple[str, Row]], source: str) -> Preferences:
    """``rows``, each with its place, as labelled answers; pairs become two of them, and empty answers are skipped.

    Args:
        rows: with the columns of the source.
        source: for messages.

    Raises:
        DataError: no rows, a column that is missing, a value of another kind, or answers with one label alone.

    Example:
        >>> found = labelled_of([("line 1", {"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"})], "sums")
        >>> [(row["completion"], row["label"]) for row in found.rows]
        [(' 2', True), (' 3', False)]
    """
    if rows and _has(rows[0][1], PAIRS) and not _has(rows[0][1], LABELLED):
        pairs = pairs_of(rows, source)
        split = [{**{key: row[key] for key in row if key not in COLUMNS[PAIRS]}, "completion": row[side], "label": good}
                 for row in pairs.rows for side, good in (("chosen", True), ("rejected", False))]  # fmt: skip
        return replace(pairs, rows=split, format=LABELLED)
    found = _read(rows, source, LABELLED, _labelled)
    labels = {row["label"] for row in found.rows}
    if len(labels) == 1:
        raise DataError(
            f"data {source!r}: column 'label'",
            got=f"{str(labels.pop()).lower()} in all {len(found.rows)} rows",
            needed="answers with label true and answers with label false",
        )
    return found


def shuffled(preferences: Preferences, seed: int) -> Preferences:
    """The same rows in another order, for trainers that read them in the order of the data.

    Args:
        preferences: to learn from.
        seed: the same one gives the same order.

    Example:
        >>> sorted(shuffled(Preferences([{"a": 1}, {"a": 2}], PAIRS, "x"), 0).rows, key=lambda row: row["a"])
        [{'a': 1}, {'a': 2}]
    """
    order = random.Random(seed).sample(range(len(preferences.rows)), len(preferences.rows))
    return replace(preferences, rows=[preferences.rows[index] for index in order])


def held_out_from(preferences: Preferences) -> tuple[Preferences, Examples | None]:
    """Split off the examples of some prompts to measure on, as many as :func:`orthotune.text.data.hold_out` takes.

    All examples of a prompt are on one side. Nothing is split off where answers of both labels would not be on both.

    Args:
        preferences: all of them.

    Example:
        >>> rows = [("x", {"prompt": str(n // 2), "chosen": "a", "rejected": str(n)}) for n in range(80)]
        >>> rest, held_out = held_out_from(pairs_of(rows, "numbers"))
        >>> len(rest.rows), len(held_out.rows)
        (76, 4)
    """
    keys = [json.dumps(row["prompt"] or row) for row in preferences.rows]
    prompts = Examples([{"prompt": key} for key in dict.fromkeys(keys)], preferences.format, preferences.source)
    _, chosen = hold_out(prompts)
    taken = {row["prompt"] for row in chosen.rows} if chosen else set()
    sides = [[row for row, key in zip(preferences.rows, keys, strict=True) if (key in taken) == side]
             for side in (False, True)]  # fmt: skip
    if not taken or (preferences.format == LABELLED and any(len({row["label"] for row in side}) < 2 for side in sides)):
        return preferences, None
    return replace(preferences, rows=sides[0]), Examples(sides[1], preferences.format, preferences.source)


def preference_table(examples: Examples) -> Any:
    """The examples as a ``datasets.Dataset``; every message keeps its own fields, and no others.

    Args:
        examples: pairs or labelled answers.
    """
    from datasets import Dataset, Features, Json, Value

    columns = list(dict.fromkeys(column for row in examples.rows for column in row))
    kinds: dict[str, Any] = {"label": Value("bool"), "margin": Value("float64")}
    dialogues = {column for column in columns if isinstance(examples.rows[0].get(column), list)}
    features = {name: Json() if name in dialogues else kinds.get(name, Value("string")) for name in columns}
    rows = [{column: row.get(column) for column in columns} for row in examples.rows]
    return Dataset.from_list(rows, features=Features(features))


def _has(row: Row, form: str) -> bool:
    return all(row.get(column) is not None for column in COLUMNS[form])


def _read(
    rows: Sequence[tuple[str, Row]], source: str, form: str, read: Callable[[Row, str], Row | None]
) -> Preferences:
    if not rows:
        raise DataError(f"data {source!r}", got="no rows", needed="at least one example")
    found: list[Row] = []
    first, blank, equal = "", 0, 0
    for place, row in rows:
        _check_columns(row, place, form)
        if form == PAIRS and row["chosen"] == row["rejected"]:
            equal += 1
            continue
        taken = read(row, place)
        if taken is None:
            blank += 1
            continue
        if found and isinstance(taken["prompt"], list) != isinstance(found[0]["prompt"], list):
            kinds = [("texts", "messages")[isinstance(one["prompt"], list)] for one in (taken, found[0])]
            raise DataError(place, got=kinds[0], needed=f"{kinds[1]}, as in {first}: all rows are of one kind")
        first = first or place
        found.append(taken)
    if not found:
        got = f"{len(rows)} rows: {blank} with an empty prompt or answer, {equal} whose answers are the same"
        raise DataError(f"data {source!r}", got=got, needed="at least one example to learn from")
    read_columns = {"prompt", "tools", "margin", *COLUMNS[form]}
    unused = {str(column) for _, row in rows for column, value in row.items() if value is not None} - read_columns
    return Preferences(found, form, source, blank, tuple(sorted(unused)), equal=equal)


def _check_columns(row: Row, place: str, form: str) -> None:
    missing = [column for column in COLUMNS[form] if row.get(column) is None]
    if form == LABELLED and not missing and row.get("prompt") is None and not isinstance(row["completion"], list):
        missing = ["prompt"]
    if not missing:
        return
    present = [str(key) for key in row if row[key] is not None]
    close = nearest(missing[0], [key for key in present if key not in ("prompt", *COLUMNS[form])], count=1)
    needed = " and ".join(("prompt", *COLUMNS[form]))
    raise DataError(
        f"{place}: no {' and no '.join(missing)}",
        got=f"columns {', '.join(sorted(present)) or '(none)'}",
        needed=needed if form == PAIRS else f"{needed}, or prompt and chosen and rejected",
        do=f"Rename {close[0]!r} to {missing[0]!r}, if that is what it holds" if close else None,
    )


def _pair(row: Row, place: str) -> Row | None:
    """A row with a prompt of the kind that its answers are; None for an empty answer."""
    prompt, answers = row.get("prompt"), [_value(row, column, place) for column in COLUMNS[PAIRS]]
    if prompt is None:
        prompt, answers = _shared_beginning(answers, place)
    else:
        prompt, answers = _of_one_kind(_value(row, "prompt", place), answers)
    if any(map(_is_empty, answers)):
        return None
    return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], **_extras(row, place)}


def _labelled(row: Row, place: str) -> Row | None:
    prompt, answers = row.get("prompt"), [_value(row, "completion", place)]
    if prompt is None:
        prompt, answers = answers[0][:-1], [answers[0][-1:]]
    else:
        prompt, answers = _of_one_kind(_value(row, "prompt", place), answers)
    label = row["label"]
    if not isinstance(label, bool):
        key = label.strip().lower() if isinstance(label, str) else label
        if not isinstance(key, str | int) or key not in LABELS:
            raise DataError(f"{place}: column 'label'", got=f"{label!r}", needed="true (wanted) or false (not wanted)")
        label = LABELS[key]
    if _is_empty(prompt) or _is_empty(answers[0]):
        return None
    return {"prompt": prompt, "completion": answers[0], "label": label, **_extras(row, place)}


def _value(row: Row, column: str, place: str) -> Any:
    value = row[column]
    if not isinstance(value, str) and not is_dialogue(value):
        raise DataError(
            f"{place}: column {column!r}",
            got=f"{type(value).__name__} {str(value)[:40]!r}",
            needed="a text, or a list of {role, content}",
        )
    return value


def _of_one_kind(prompt: Any, answers: list[Any]) -> tuple[Any, list[Any]]:
    """Prompt and answers, all texts or all messages; a prompt that the answers repeat is taken off them."""
    if not isinstance(prompt, list) and not any(isinstance(answer, list) for answer in answers):
        return prompt, answers
    messages = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    dialogues = [one if isinstance(one, list) else [{"role": "assistant", "content": one}] if one.strip() else []
                 for one in answers]  # fmt: skip
    # Sets in which the answers are complete dialogues, as the common ones, write the prompt a second time.
    if all(one[: len(messages)] == messages for one in dialogues):
        return messages, [one[len(messages) :] for one in dialogues]
    if not isinstance(prompt, list) and all(len(one) > 1 and _asks(one, prompt) for one in dialogues):
        count = next(place for place, message in enumerate(dialogues[0]) if message.get("content") == prompt) + 1
        if any(one[:count] != dialogues[0][:count] for one in dialogues):
            raise DataError(
                "the dialogues of two answers", got="other messages before the prompt", needed="the same messages"
            )
        return dialogues[0][:count], [one[count:] for one in dialogues]
    return messages, dialogues


def _asks(dialogue: list[Any], prompt: str) -> bool:
    return any(message.get("content") == prompt and message["role"] == "user" for message in dialogue[:-1])


def _shared_beginning(answers: list[Any], place: str) -> tuple[Any, list[Any]]:
    """The beginning that both answers have in common, up to a space or between two messages, and the rest of each."""
    chosen, rejected = answers
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise DataError(place, got="a text and a list of messages", needed="two answers of one kind, or a prompt")
    count = 0
    while count < min(len(chosen), len(rejected)) and chosen[count] == rejected[count]:
        count += 1
    if isinstance(chosen, str):
        while count > 0 and (count == min(len(chosen), len(rejected)) or not chosen[count].isspace()):
            count -= 1
    elif not count:
        raise DataError(
            f"{place}: no prompt",
            got="two dialogues that have no message in common",
            needed="a column prompt, or answers that begin with the same messages",
        )
    return chosen[:count], [one[count:] for one in answers]


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return not value or not (value[-1].get("content") or value[-1].get("tool_calls"))


def _extras(row: Row, place: str) -> Row:
    """The optional columns that trainers read."""
    found: Row = {}
    if row.get("tools"):
        # As JSON: rows have tools of other fields, which a table would give each other.
        found["tools"] = row["tools"] if isinstance(row["tools"], str) else json.dumps(row["tools"])
    if row.get("margin") is not None:
        try:
            found["margin"] = float(row["margin"])
        except (TypeError, ValueError) as fault:
            raise DataError(f"{place}: column 'margin'", got=f"{row['margin']!r}", needed="a number") from fault
    return found
