"""Short questions with exact answers, and the rules by which a reply is right.

A reply is right by the rule of its question's kind:

``facts``
    The first sentence of the reply names an accepted answer, as complete words in this order. Upper and lower case,
    accents and punctuation do not count.
``arithmetic``
    The first number after an equals sign is an accepted one; in a reply without an equals sign, the last number in the
    first sentence. Numbers up to a hundred may be words.
``instructions``
    The complete reply is an accepted answer and nothing else. Quotation marks around the reply, a full stop at its end
    and the number of spaces do not count; upper and lower case do.

A sentence ends at a full stop, question mark or exclamation mark before a space, and at the end of a line.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.files.json_file import read_json_lines

#: The questions that come with the package.
QUESTIONS = Path(__file__).with_name("questions.jsonl")
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: value for value, word in enumerate(_SMALL.split())} | {
    word: 10 * value for value, word in enumerate(_TENS.split(), start=2)
}


@dataclass(frozen=True)
class Question:
    """A question and its answers.

    Args:
        question: what a model is asked.
        kind: ``facts``, ``arithmetic`` or ``instructions``; the rule by which a reply is right.
        answers: the accepted answers, the first one in the form that a reply most likely has.
    """

    question: str
    kind: str
    answers: tuple[str, ...]

    def is_answered_by(self, reply: str) -> bool:
        """Whether a reply is right by the rule of the question's kind.

        Args:
            reply: the text that a model wrote.

        Example:
            >>> Question("What is 2 + 3?", "arithmetic", ("5",)).is_answered_by("2 + 3 is five.")
            True
        """
        return RULES[self.kind](reply, self.answers)


def read_questions(path: Path | None = None) -> list[Question]:
    """The questions of a file.

    Args:
        path: JSON Lines with ``question``, ``kind`` and ``answers``, a list of texts; None for the questions that come
            with the package.

    Returns:
        The questions in the order of the file.

    Raises:
        DataError: there is no such file, no question in it, or a line that is no question; names the line.

    Example:
        >>> read_questions()[0]
        Question(question='What is the capital of France?', kind='facts', answers=('Paris',))
    """
    path = path or QUESTIONS
    needed = 'lines as {"question": "What is 2 + 3?", "kind": "arithmetic", "answers": ["5"]}'
    lines: dict[str, int] = {}
    questions = []
    for number, line in read_json_lines(path, named="questions", needed=needed):
        fault = _fault(line)
        if fault is None and (before := lines.setdefault(line["question"], number)) != number:
            fault = f"the question of line {before} again", None
        if fault is not None:
            raise DataError(f"questions {path}, line {number}", got=fault[0], needed=needed, do=fault[1])
        questions.append(Question(line["question"], line["kind"], tuple(line["answers"])))
    if not questions:
        raise DataError(f"questions {path}", got="no question", needed=needed)
    return questions


def _fault(line: Mapping[str, Any]) -> tuple[str, str | None] | None:
    """What a line lacks to be a question, and what to do."""
    if missing := [key for key in ("question", "kind", "answers") if key not in line]:
        return f"no {missing[0]!r}", None
    if more := [key for key in line if key not in ("question", "kind", "answers")]:
        return f"an unknown key {more[0]!r}", None
    question, kind, answers = line["question"], line["kind"], line["answers"]
    if not isinstance(question, str) or not question.strip():
        return f"a question {question!r}", None
    if not isinstance(kind, str) or kind not in RULES:
        near = nearest(str(kind), RULES, 1)
        return f"kind {kind!r}", f"Did you mean {near[0]!r}?" if near else f"Choose {', '.join(RULES)}"
    if not isinstance(answers, list) or not answers or not all(isinstance(one, str) and one.strip() for one in answers):
        return f"answers {answers!r}", None
    if kind == "arithmetic" and (bad := [one for one in answers if len(_numbers(one)) != 1]):
        return f"the answer {bad[0]!r}, which is not one number", None
    return None


def _names(reply: str, answers: Sequence[str]) -> bool:
    """The rule of facts."""
    words = f" {_words(_first_sentence(reply))} "
    return any(f" {_words(answer)} " in words for answer in answers)


def _calculates(reply: str, answers: Sequence[str]) -> bool:
    """The rule of arithmetic."""
    _, equals, result = reply.partition("=")
    found = _numbers(result)[:1] if equals else _numbers(_first_sentence(reply))[-1:]
    return bool(found) and any(_numbers(answer) == found for answer in answers)


def _follows(reply: str, answers: Sequence[str]) -> bool:
    """The rule of instructions."""
    return any(_bare(reply) == _bare(answer) for answer in answers)


#: kind -> the rule by which a reply is right, given the accepted answers.
RULES: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "facts": _names,
    "arithmetic": _calculates,
    "instructions": _follows,
}


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s|\n", text.strip(), maxsplit=1)[0]


def _words(text: str) -> str:
    """Words in small letters without accents, one space between them."""
    letters = "".join(one for one in unicodedata.normalize("NFKD", text) if not unicodedata.combining(one))
    return " ".join(re.findall(r"\w+", letters.casefold()))


def _numbers(text: str) -> list[float]:
    """The numbers in a text, digits and words, in their order."""
    found: list[float] = []
    tens = False  # whether the last word can be followed by a number below ten: twenty-six
    for one in re.findall(r"\d[\d,]*(?:\.\d+)?|[a-z]+", text.casefold()):
        value = 100 if one == "hundred" else _NUMBERS.get(one)
        if one[0].isdigit():
            found.append(float(one.replace(",", "")))
        elif value is not None and tens and 0 < value < 10:
            found[-1] += value
        elif value == 100 and found[-1:] == [1.0]:
            found[-1] = 100.0
        elif value is not None:
            found.append(float(value))
        tens = value is not None and 20 <= value < 100
    return found


def _bare(text: str) -> str:
    """Without quotation marks around, a full stop at the end, and repeated spaces."""
    text = re.sub(r"\s+", " ", text).strip()
    for _ in range(2):  # the full stop stands inside or outside of the quotation marks
        text = text.strip("\"'“”‘’`*").removesuffix(".").strip()
    return re.sub(r" ?, ?", ", ", text)
