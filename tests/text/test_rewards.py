"""Rewards: what each built-in one gives; the fault of a function is an error that names the function and the row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import RecipeError
from orthotune.text.reward_functions import is_exact, last_number
from orthotune.text.rewards import make_rewards, names_of, reward_specs, text_of

FUNCTIONS = """
from functools import partial

def vowels(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) for text in completions]

def hint(completions, hint):
    return [float(given in text) for text, given in zip(completions, hint)]

def too_few(completions, **_):
    return [1.0]

def no_list(completions, **_):
    return 1.0

def not_finite(completions, **_):
    return [0.5, float("nan"), 0.5]

def words(completions, **_):
    return ["good", "bad", "good"]

def fails(prompts, completions, **_):
    return [1 / len(text.strip()) for text in completions]

def sometimes(completions, **_):
    return [None, 1, True]

async def later(completions, **_):
    return [0.0 for _ in completions]

NUMBER = 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(FUNCTIONS)
    return path


def _no_model(where: str) -> Callable[..., Any]:
    raise AssertionError(f"the reward model {where} is not asked for here")


def _made(given: Any) -> list[Any]:
    return make_rewards(reward_specs(given), _no_model)


def _values(given: Any, completions: list[Any], **columns: list[Any]) -> Any:
    prompts = [f"prompt {place}" for place in range(len(completions))]
    ids = [list(range(len(text_of(text)))) for text in completions]
    (reward,) = _made(given)
    return reward(prompts=prompts, completions=completions, completion_ids=ids, trainer_state=None, **columns)


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("42", "42", True),
        (" 42.\n", "42", True),
        ("42.0", "42", True),
        ("1,234", "1234", True),
        ("42\nbecause 40 + 2", "42", True),
        ("because\n42", "42", False),
        ("it is 42", "42", False),
        ("-5", "5", False),
        ("«Paris»", "Paris", False),
        ("“Paris.”", "paris", True),
        ("", "42", False),
        ("New  York", "new york", True),
    ],
)
def test_an_exact_answer(completion: str, answer: str, right: bool) -> None:
    assert is_exact(completion, answer) == right


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("17 + 25 = 42.", 42),
        ("3-5", 5),
        ("= -5", -5),
        ("(-2.5)", -2.5),
        ("1,250 and 1,250,000.75", 1250000.75),
        ("no-7 way", 7),
        ("x1", 1),
        ("1e3", 1000),
        ("2.5e-1 or so", 0.25),
        ("3 em", 3),
        ("", None),
        ("none", None),
    ],
)
def test_the_last_number(text: str, found: float | None) -> None:
    assert last_number(text) == found


def test_built_in_rewards_read_texts_and_messages(file: Path) -> None:
    said = [[{"role": "assistant", "content": text}] for text in ("4", "five", "It is 6.")]
    for completions in (said, ["4", "five", "It is 6."]):
        assert _values("exact", completions, answer=[4, "5", 6]) == [1, 0, 0]
        assert _values({"number": "result"}, completions, result=["2 + 2 = 4", 5, 6.0]) == [1, 0, 1]
        assert _values({"format": r"^\d$|\.$"}, completions) == [1, 0, 1]
        assert _values({"length": 4}, completions) == [0.25, 1, 0]
    assert _values(f"{file}:vowels", ["4", "five", "It is 6."]) == [0, 2, 1]
    assert _values(f"{file}:hint", ["4", "five"], hint=["4", "4"], other=[1, 2]) == [1, 0]
    assert _values(f"{file}:sometimes", ["a", "b", "c"]) == [None, 1, 1]


def test_several_rewards_have_weights_and_names_of_their_own(file: Path) -> None:
    given = ["exact", {"format": "^A", "weight": 0.5}, {"format": "B$", "weight": -1}, {f"{file}:vowels": None}]
    assert [(one.name, one.weight, one.columns) for one in _made(given)] == [
        ("exact", 1, ("answer",)), ("format", 0.5, ()), ("format#2", -1, ()), ("vowels", 1, ())
    ]  # fmt: skip
    assert names_of(reward_specs(given)) == [one.name for one in _made(given)]
    assert _made(f"{file}:hint")[0].columns == ("hint",)
    assert _made("tests.text.test_rewards.a_reward")[0].name == "tests.text.test_rewards.a_reward"


def a_reward(completions: list[str], **_: Any) -> list[float]:
    """Found by its dotted path."""
    return [0.0] * len(completions)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "reward. Found: an empty list"),
        (None, "reward. Found: None. Needed: exact, number"),
        ("exat", "reward 'exat'. Found: no such reward.*Did you mean 'exact'"),
        ({"format": "^A", "length": 3}, "Needed: one reward with its value"),
        ({"weight": 2}, "Needed: one reward with its value"),
        ({"exact": 3}, "reward exact. Found: 3. Needed: the column with the answer. Write {exact: solution}"),
        ("format", "reward format. Found: None. Needed: a regular expression"),
        ({"format": "("}, r"reward format: '\('. Found: missing \)"),
        ({"length": 0}, "reward length. Found: 0. Needed: a number of tokens"),
        ({"exact": None, "weight": "high"}, "weight of reward exact. Found: 'high'"),
        ({"exact": None, "weight": float("nan")}, "weight of reward exact. Found: nan"),
        ({"math.sqrt": 2}, "reward math.sqrt. Found: the value 2"),
        ("no_such_package.module.function", "no module 'no_such_package' that Python can import here. Write the file"),
        (
            "orthotune.text.rewards.reward_spec",
            "Found: no 'reward_spec' in orthotune.text.rewards.*mean 'reward_specs'",
        ),
        ("missing.py:reward", "Found: no file missing.py"),
        ("{file}:NUMBER", "Found: a int. Needed: a function"),
        ("{file}:vowel", "Found: no 'vowel' in .*Did you mean 'vowels'"),
        ("{file}:later", "Found: an async function"),
        (
            "{broken}:f",
            r"Found: NameError: name 'undefined' is not defined \(broken.py, line 2\), while .*was imported",
        ),
    ],
)
def test_a_reward_that_cannot_be_used_is_refused_before_anything_is_loaded(file: Path, given: Any, words: str) -> None:
    (broken := file.with_name("broken.py")).write_text("\nundefined\n")
    given = given.format(file=file, broken=broken) if isinstance(given, str) else given
    with pytest.raises(RecipeError, match=words):
        _made(given)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("too_few", "reward too_few. Found: 1 values. Needed: a list of 3 numbers, one for each completion"),
        ("no_list", "reward no_list. Found: a result of type float"),
        ("not_finite", "reward not_finite. Found: nan for row 1 of the batch, prompt 'prompt 1', completion ' '"),
        ("words", "reward words. Found: 'good' for row 0 of the batch"),
        ("fails", r"reward fails at row 1 of the batch, prompt 'prompt 1', completion ' '. Found: ZeroDivisionError: "
                  r"division by zero \(rewards.py, line \d+\)"),
    ],
)  # fmt: skip
def test_the_fault_of_a_function_names_the_function_and_the_row(file: Path, name: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        _values(f"{file}:{name}", ["good", " ", "better"])
