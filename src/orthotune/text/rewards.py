"""Rewards of reinforcement learning: built in, by a reward model, or functions of the user, each result checked."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import numbers
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from orthotune.errors import RecipeError, nearest
from orthotune.text.reward_functions import exact, format_reward, length_reward, number

#: What a reward is called with besides the columns of the data.
GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
#: Built-in rewards, and what the value of each one means.
BUILT_IN = {
    "exact": "the column with the answer",
    "number": "the column with the answer",
    "format": "a regular expression",
    "length": "a number of tokens",
    "model": "the folder of a reward model or of a run of `orthotune train reward`",
}
ANSWER = "answer"
#: Marks a reward that another argument decides: the column of an answer.
COLUMN_REWARDS = {"exact": exact, "number": number}
NEEDED = f"{', '.join(BUILT_IN)}, package.module.function or file.py:function"


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a recipe.

    Args:
        name: of a built-in reward, or where a function is: ``package.module.function`` or ``file.py:function``.
        value: of a built-in reward, see ``BUILT_IN``; None is its default.
        weight: of the reward in the sum.
    """

    name: str
    value: Any = None
    weight: float = 1.0

    @property
    def column(self) -> str | None:
        """The column with the answers, of a reward that compares with one."""
        return str(self.value or ANSWER) if self.name in COLUMN_REWARDS else None


@dataclass(frozen=True)
class Reward:
    """A reward as a trainer calls it: one number per completion, or None where it does not apply.

    Args:
        name: in messages and in the log.
        weight: in the sum.
        function: as TRL calls reward functions, with keywords.
        columns: of the data that the function needs.
        open: the function takes every column.
        accepts: the keywords that it takes, where it is not open.

    Raises:
        RecipeError: at a call: the function fails, or does not return one finite number per completion. The message
            names the function and the first row at which this happens.
    """

    name: str
    weight: float
    function: Callable[..., Any]
    columns: tuple[str, ...] = ()
    open: bool = True
    accepts: frozenset[str] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        # TRL names what it logs by this attribute.
        object.__setattr__(self, "__name__", self.name)

    def __call__(self, **given: Any) -> list[float | None]:
        """The rewards of a batch.

        Args:
            **given: what ``GIVEN`` names, and each further column of the data as a list.
        """
        rows = len(given["prompts"])
        taken = given if self.open else {key: value for key, value in given.items() if key in self.accepts}
        try:
            found = self.function(**taken)
        except RecipeError:
            raise
        except Exception as fault:
            raise self._failed(taken, rows, fault) from fault
        return self._checked(found, given, rows)

    def _checked(self, found: Any, given: Mapping[str, Any], rows: int) -> list[float | None]:
        if hasattr(found, "tolist"):  # a tensor or an array
            found = found.tolist()
        if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != rows:
            sized = isinstance(found, Sequence) and not isinstance(found, str)
            raise RecipeError(
                f"reward {self.name}",
                got=f"{len(found)} values" if sized else f"a result of type {type(found).__name__}",
                needed=f"a list of {rows} numbers, one for each completion",
                do="Return a list with a number, or None where the reward does not apply, for each completion",
            )
        for row, value in enumerate(found):
            if value is not None and (not isinstance(value, numbers.Real) or not math.isfinite(value)):
                raise RecipeError(
                    f"reward {self.name}",
                    got=f"{value!r} for row {row} of the batch, {_shown(given, row)}",
                    needed="a finite number, or None where the reward does not apply",
                )
        return [None if value is None else float(value) for value in found]

    def _failed(self, taken: Mapping[str, Any], rows: int, fault: Exception) -> RecipeError:
        """The error for a function that raised one: its row is found by calling it with one row after the other."""
        for row in range(rows):
            one = {key: [value[row]] if _is_column(value, rows) else value for key, value in taken.items()}
            try:
                self.function(**one)
            except Exception as again:
                at = f" at row {row} of the batch, {_shown(taken, row)}"
                return RecipeError(f"reward {self.name}{at}", got=_fault(again), do="Correct the function")
        return RecipeError(f"reward {self.name}", got=_fault(fault), do="Correct the function")


def reward_specs(given: Any) -> list[RewardSpec]:
    """The rewards that a setting names, checked as far as this is possible without loading anything.

    Args:
        given: a name, a mapping as ``{format: "^A", weight: 0.5}``, or a list of both.

    Raises:
        RecipeError: no reward, an unknown one, or a value that does not fit.

    Example:
        >>> reward_specs(["exact", {"length": 20, "weight": 0.1}])
        [RewardSpec(name='exact', value=None, weight=1.0), RewardSpec(name='length', value=20, weight=0.1)]
    """
    entries = given if isinstance(given, list) else [given]
    if not entries:
        raise RecipeError("reward", got="an empty list", needed=NEEDED)
    return [_spec(entry) for entry in entries]


def make_rewards(specs: Sequence[RewardSpec], model_reward: Callable[[str], Callable[..., Any]]) -> list[Reward]:
    """The rewards of specs, each with a name of its own.

    Args:
        specs: as :func:`reward_specs` returns them.
        model_reward: makes the function of a reward model from its folder.

    Raises:
        RecipeError: a function that is not there or cannot be called as a reward.
    """
    return [_made(spec, name, model_reward) for spec, name in zip(specs, names_of(specs), strict=True)]


def names_of(specs: Sequence[RewardSpec]) -> list[str]:
    """The names of rewards in messages and in the log, each a different one.

    Args:
        specs: as :func:`reward_specs` returns them.

    Example:
        >>> names_of(reward_specs([{"format": "^A"}, {"format": "B$"}, "rewards.py:short"]))
        ['format', 'format#2', 'short']
    """
    found: list[str] = []
    for spec in specs:
        name = spec.name.rpartition(":")[2] if ":" in spec.name else spec.name
        same = sum(one == name or one.startswith(f"{name}#") for one in found)
        found.append(f"{name}#{same + 1}" if same else name)
    return found


def text_of(completion: Any) -> str:
    """A completion, a text or a list of messages, as a text.

    Example:
        >>> text_of([{"role": "assistant", "content": "Yes"}]), text_of("No")
        ('Yes', 'No')
    """
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)


def _spec(entry: Any) -> RewardSpec:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict):
        raise RecipeError("reward", got=repr(entry), needed=f"{NEEDED}, or a mapping such as {{format: '^A'}}")
    names = [str(name) for name in entry if name != "weight"]
    if len(names) != 1:
        raise RecipeError("reward", got=f"{entry!r}", needed="one reward with its value, and weight where wanted")
    name, value, weight = names[0], entry[names[0]], entry.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise RecipeError(f"weight of reward {name}", got=repr(weight), needed="a finite number")
    if name not in BUILT_IN and "." not in name and ":" not in name:
        close = nearest(name, BUILT_IN, 1)
        raise RecipeError(
            f"reward {name!r}", got="no such reward", needed=NEEDED, do=f"Did you mean {close[0]!r}?" if close else None
        )
    _check_value(name, value)
    return RewardSpec(name, value, float(weight))


def _check_value(name: str, value: Any) -> None:
    fits, needed = True, BUILT_IN.get(name, "")
    if name in COLUMN_REWARDS:
        fits = value is None or (isinstance(value, str) and bool(value))
    elif name == "format":
        fits = isinstance(value, str)
        try:
            re.compile(value if fits else "")
        except re.error as fault:
            raise RecipeError(f"reward format: {value!r}", got=str(fault), needed=needed) from fault
    elif name == "length":
        fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
    elif name == "model":
        fits = isinstance(value, str) and bool(value)
    elif value is not None:
        raise RecipeError(f"reward {name}", got=f"the value {value!r}", needed="a function alone", do="Leave it out")
    if not fits:
        example = {"format": "'^Answer: '", "length": "100", "model": "runs/reward-oft"}.get(name, "solution")
        raise RecipeError(f"reward {name}", got=repr(value), needed=needed, do=f"Write {{{name}: {example}}}")


def _made(spec: RewardSpec, name: str, model_reward: Callable[[str], Callable[..., Any]]) -> Reward:
    if spec.column is not None:
        compare, column = COLUMN_REWARDS[spec.name], spec.column

        def against(completions: Sequence[Any], **given: Any) -> list[float]:
            return compare([text_of(one) for one in completions], [str(answer) for answer in given[column]])

        return Reward(name, spec.weight, against, (column,))
    if spec.name == "format":
        score = format_reward(spec.value)
        return Reward(name, spec.weight, lambda completions, **_: score([text_of(one) for one in completions]))
    if spec.name == "length":
        measure = length_reward(spec.value)
        return Reward(name, spec.weight, lambda completion_ids, **_: measure(completion_ids))
    if spec.name == "model":
        return Reward(name, spec.weight, model_reward(spec.value))
    return _of_user(spec, name)


def _of_user(spec: RewardSpec, name: str) -> Reward:
    function = _function(spec.name)
    given = inspect.signature(function).parameters.values()
    keywords = [one for one in given if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    asked = [one.name for one in keywords if one.default is one.empty and one.name not in GIVEN]
    if any(one.kind is one.POSITIONAL_ONLY for one in given):
        raise RecipeError(f"reward {spec.name}", got="arguments without keywords", needed="prompts, completions, ...")
    if inspect.iscoroutinefunction(function):
        raise RecipeError(f"reward {spec.name}", got="an async function", needed="a function that returns its values")
    return Reward(
        name, spec.weight, function, tuple(asked), any(one.kind is one.VAR_KEYWORD for one in given),
        frozenset(one.name for one in keywords),
    )  # fmt: skip


def _function(where: str) -> Callable[..., Any]:
    colon = ":" in where
    place, _, name = where.rpartition(":" if colon else ".")
    module = _from_file(place, where) if colon and place.endswith(".py") else _module(place, where)
    found = getattr(module, name, None)
    if found is None:
        close = nearest(name, [one for one in vars(module) if not one.startswith("_")], 1)
        do = f"Did you mean {close[0]!r}?" if close else None
        raise RecipeError(f"reward {where}", got=f"no {name!r} in {place}", needed="the name of a function", do=do)
    if not callable(found):
        raise RecipeError(f"reward {where}", got=f"a {type(found).__name__}", needed="a function")
    function: Callable[..., Any] = found
    return function


def _module(place: str, where: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as fault:
        got = f"no module {fault.name!r} that Python can import here"
        do = "Write the file instead, as rewards.py:function, or set PYTHONPATH to the folder of the package"
        raise RecipeError(f"reward {where}", got=got, do=do) from fault
    except Exception as fault:
        raise RecipeError(f"reward {where}", got=f"{_fault(fault)}, while {place} was imported") from fault


def _from_file(place: str, where: str) -> ModuleType:
    path = Path(place).expanduser()
    if not path.is_file():
        raise RecipeError(f"reward {where}", got=f"no file {path}", do="Check the path")
    described = importlib.util.spec_from_file_location(path.stem, path)
    if described is None or described.loader is None:
        raise RecipeError(f"reward {where}", got=f"{path}, which Python cannot import", needed="a file ending in .py")
    module = importlib.util.module_from_spec(described)
    try:
        described.loader.exec_module(module)
    except Exception as fault:
        raise RecipeError(f"reward {where}", got=f"{_fault(fault)}, while {path} was imported") from fault
    return module


def _fault(fault: Exception) -> str:
    last = traceback.extract_tb(fault.__traceback__)[-1:]
    line = f" ({Path(last[0].filename).name}, line {last[0].lineno})" if last else ""
    return f"{type(fault).__name__}: {fault}{line}"


def _is_column(value: Any, rows: int) -> bool:
    return isinstance(value, list) and len(value) == rows


def _shown(given: Mapping[str, Any], row: int) -> str:
    words = [
        f"{one} {text_of(given[key][row])[:60]!r}"
        for key, one in (("prompts", "prompt"), ("completions", "completion"))
        if key in given
    ]
    return ", ".join(words) or "whose prompt the function does not take"
