"""Labels of texts as a table has them: what kind they are, the names of the classes, and the numbers a model learns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orthotune.errors import DataError
from orthotune.recipes.labelled_data import listed

Problem = Literal["single", "multi", "regression"]
#: problem -> transformers' name of it, in a model's config
PROBLEM_TYPES: dict[Problem, str] = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
#: Between the labels of one cell of a CSV file.
SEPARATOR = "|"


@dataclass(frozen=True)
class Labelled:
    """An example with its label as its table has it: a name, a number, or a list of names."""

    place: str
    inputs: Any
    label: Any


def problem_of(examples: Sequence[Labelled], asked: str = "auto") -> Problem:
    """What the labels are: one class per example, a list of any number of classes, or a number.

    Args:
        examples: all of ``data``.
        asked: the setting ``problem``; ``auto`` takes lists for several classes, numbers with a fraction for a
            regression and everything else for one class.

    Raises:
        DataError: labels of mixed kinds; names the rows.

    Example:
        >>> problem_of([Labelled("line 1", "Fine.", 0.5), Labelled("line 2", "Bad.", 1)])
        'regression'
    """
    kinds: dict[str, str] = {}
    for example in examples:
        kinds.setdefault(_kind(example), example.place)
    if {"a number", "a number with a fraction"} == set(kinds):
        kinds = {"a number with a fraction": kinds["a number with a fraction"]}
    if len(kinds) > 1:
        (one, first), (other, second), *_ = kinds.items()
        raise DataError(
            "labels of mixed kinds", got=f"{one} ({first}) and {other} ({second})",
            needed="one kind: names, whole numbers, lists of names, or numbers", do="Write all labels the same way",
        )  # fmt: skip
    (kind,) = kinds
    if asked == "auto":
        return "multi" if kind == "a list" else "regression" if kind == "a number with a fraction" else "single"
    problem: Problem = asked  # type: ignore[assignment]
    if kind == "a list" and problem != "multi":
        raise DataError(f"problem={asked}", got="lists of labels", do="Choose problem=multi, or leave it out")
    return problem


def names_in(examples: Sequence[Labelled], problem: Problem, known: Sequence[str] = ()) -> list[str]:
    """The names of the classes, sorted; whole numbers by their value.

    Args:
        examples: all of ``data``.
        problem: what the labels are.
        known: classes of the base's own head; if all names are among them, these classes keep their order.

    Returns:
        the names; ``["value"]`` for a regression.

    Raises:
        DataError: fewer than two classes.

    Example:
        >>> names_in([Labelled("", "", 10), Labelled("", "", 9)], "single")
        ['9', '10']
    """
    if problem == "regression":
        return ["value"]
    found = {name for example in examples for name in label_names(example, problem)}
    if found and found <= set(known):
        return list(known)
    if len(found) < (2 if problem == "single" else 1):
        raise DataError(
            "labels", got=f"one class, {found.pop()!r}" if found else "no label at all", needed="at least two classes",
            do="Check the column label",
        )  # fmt: skip
    numbers = all(name.lstrip("-").isdigit() for name in found)
    return sorted(found, key=int) if numbers else sorted(found)


def classes_of(config: Any) -> list[str]:
    """The classes of a base that has a head of classes already; none of any other base.

    Args:
        config: of the base.
    """
    kind = str((config.architectures or [""])[0])
    return [str(name) for name in config.id2label.values()] if kind.endswith("Classification") else []


def label_names(example: Labelled, problem: Problem) -> list[str]:
    """The names of the classes of one example.

    Args:
        example: with its label.
        problem: ``single`` or ``multi``.

    Raises:
        DataError: a name that is empty or no name.
    """
    label = example.label
    if problem == "multi" and isinstance(label, str):
        values: list[Any] = [part for part in label.split(SEPARATOR) if part.strip()]
    else:
        values = label if isinstance(label, list) else [label]
    for value in values:
        if not isinstance(value, str | int) or not str(value).strip():
            raise DataError(f"{example.place}: column 'label'", got=repr(value)[:40], needed="the name of a class")
    return [str(value).strip() if isinstance(value, str) else str(value).lower() for value in values]


def encoded(example: Labelled, problem: Problem, names: Sequence[str]) -> Any:
    """The label as the model learns it: a number of a class, a list of zeros and ones, or a number.

    Args:
        example: with its label.
        problem: what the labels are.
        names: of the classes.

    Raises:
        DataError: a class that ``names`` lacks, or no number in a regression.

    Example:
        >>> encoded(Labelled("", "", ["b"]), "multi", ["a", "b"])
        [0.0, 1.0]
    """
    if problem == "regression":
        return _number(example)
    own = label_names(example, problem)
    if unknown := [name for name in own if name not in names]:
        raise DataError(
            f"{example.place}: label {unknown[0]!r}", got="a class that data does not have",
            needed=f"one of {listed(names)}", do="Correct the label, or add examples of the class to data",
        )  # fmt: skip
    return [float(name in own) for name in names] if problem == "multi" else list(names).index(own[0])


def _number(example: Labelled) -> float:
    try:
        value = float(example.label)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{example.place}: column 'label'", got=repr(example.label)[:40], needed="a finite number")
    return value


def _kind(example: Labelled) -> str:
    label = example.label
    if isinstance(label, bool):
        return "true or false"
    if isinstance(label, int):
        return "a number"
    if isinstance(label, float):
        return "a number" if label.is_integer() else "a number with a fraction"
    if isinstance(label, str):
        return "a name"
    if isinstance(label, list):
        return "a list"
    raise DataError(f"{example.place}: column 'label'", got=f"{type(label).__name__}", needed="a name, number or list")
