"""How many short questions with exact answers a language model answers right, before and after finetuning.

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

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.files.json_file import read_json_lines
from orthotune.metrics.decoding import continued
from orthotune.metrics.text_loss import IGNORED, TokenRow, row_losses

#: The questions that come with the package.
QUESTIONS = Path(__file__).with_name("questions.jsonl")
#: Tokens of a reply, and replies that are written at the same time.
LONGEST, AT_ONCE = 32, 16
#: Solved examples of each kind, which stand before every question: a small model learns from them how short to reply.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "instructions": (
        ("Write the word lamp in capital letters.", "LAMP"),
        ("Name the color of blood. Reply with one word.", "Red"),
        ("Answer only with yes or no: Is grass blue?", "No"),
        ("Repeat this sentence: It is late.", "It is late."),
    ),
}
#: The quantile of the normal distribution for intervals of 95 %.
_QUANTILE = 1.959963984540054
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


@dataclass(frozen=True)
class Reply:
    """What a model replied to a question.

    Args:
        question: that was asked.
        text: of the reply.
        right: whether the reply is right.
        nats: sum of the loss over the tokens of the first accepted answer, if the reply began with this answer.
        tokens: of the first accepted answer.
    """

    question: Question
    text: str
    right: bool
    nats: float
    tokens: int


@dataclass(frozen=True)
class Accuracy:
    """The result over the questions of one kind, or over all of them.

    Args:
        right: questions that were answered right.
        questions: that were asked.
        accuracy: share of right replies.
        low, high: Wilson's 95 % interval of this share.
        nats: mean loss of the first accepted answers, in nats per token.
    """

    right: int
    questions: int
    accuracy: float
    low: float
    high: float
    nats: float


@dataclass(frozen=True)
class Flips:
    """How two models' replies to the same questions differ.

    Args:
        right_to_wrong: questions that only the first model answers right.
        wrong_to_right: questions that only the second model answers right.
        p: probability of a difference at least as large if both models were equally good: McNemar's exact test.
    """

    right_to_wrong: int
    wrong_to_right: int
    p: float


class Answers:
    """The replies of one model.

    Args:
        replies: in the order of the questions.
    """

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.replies = tuple(replies)

    def by_kind(self) -> dict[str, Accuracy]:
        """The result for each kind of question that was asked, and for ``all`` of them."""
        kinds = [kind for kind in RULES if any(reply.question.kind == kind for reply in self.replies)]
        of_kind = {kind: [reply for reply in self.replies if reply.question.kind == kind] for kind in kinds}
        return {name: _accuracy(replies) for name, replies in (of_kind | {"all": list(self.replies)}).items()}

    def scores(self) -> dict[str, float]:
        """The accuracies as numbers of a run's record, and the loss of the accepted answers in nats per token.

        Example:
            >>> Answers([Reply(Question("1 + 1?", "arithmetic", ("2",)), "2", True, 0.5, 1)]).scores()
            {'answers_arithmetic': 1.0, 'answers': 1.0, 'answers_nats': 0.5}
        """
        found = self.by_kind()
        kinds = {f"answers_{kind}": one.accuracy for kind, one in found.items() if kind != "all"}
        return {**kinds, "answers": found["all"].accuracy, "answers_nats": found["all"].nats}

    def flips(self, after: Answers) -> Flips:
        """How the replies of another model to the same questions differ from these.

        Args:
            after: the replies of the other model.

        Raises:
            ValueError: the two were asked different questions.
        """
        pairs = list(zip(self.replies, after.replies, strict=True))
        if any(one.question != other.question for one, other in pairs):
            raise ValueError("replies to different questions cannot be compared")
        lost = sum(one.right and not other.right for one, other in pairs)
        won = sum(other.right and not one.right for one, other in pairs)
        return Flips(lost, won, mcnemar(lost, won))


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


def answer_questions(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, longest: int = LONGEST, at_once: int = AT_ONCE
) -> Answers:
    """Ask a model questions, each in a conversation of its own, and look at its likeliest replies.

    A question goes through the chat template of the tokenizer; without one, the model continues
    ``Question: ...\\nAnswer:`` to the end of the line. Prompts of different length are padded on the left, so that a
    reply does not depend on the questions beside it, up to the rounding of the model's precision.

    Args:
        model: a causal language model, with or without an adapter; left as it was.
        tokenizer: of the model.
        questions: to ask.
        longest: the most tokens of a reply.
        at_once: replies that are written at the same time.

    Example:
        >>> answer_questions(model, tokenizer, read_questions()).scores()["answers_facts"]  # doctest: +SKIP
        0.6
    """
    prompts = [tokenizer(_prompt(tokenizer, one), add_special_tokens=_is_plain(tokenizer))["input_ids"]
               for one in questions]  # fmt: skip
    order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), at_once):
        places = order[start : start + at_once]
        written = continued(model, tokenizer, [prompts[place] for place in places], longest)
        for place, row in zip(places, written, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True).strip()
            texts[place] = text.partition("\n")[0] if _is_plain(tokenizer) else text
    losses = row_losses(model, [_answer_row(tokenizer, *pair) for pair in zip(prompts, questions, strict=True)])
    return Answers(
        [
            Reply(question, text, question.is_answered_by(text), nats, tokens)
            for question, text, (nats, tokens) in zip(questions, texts, losses, strict=True)
        ]
    )


def wilson(right: int, questions: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Args:
        right: right replies.
        questions: replies; at least 1.

    Returns:
        The lower and the upper end, from 0 to 1.

    Example:
        >>> [round(end, 3) for end in wilson(20, 40)]
        [0.352, 0.648]
    """
    share, z = right / questions, _QUANTILE
    middle = share + z * z / (2 * questions)
    half = z * math.sqrt(share * (1 - share) / questions + z * z / (4 * questions**2))
    low, high = ((middle + sign * half) / (1 + z * z / questions) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def mcnemar(one: int, other: int) -> float:
    """The p-value of McNemar's exact test, two-sided, from the numbers of pairs that differ in either direction.

    Args:
        one: pairs that differ in one direction.
        other: pairs that differ in the other direction.

    Example:
        >>> mcnemar(5, 0), mcnemar(3, 3)
        (0.0625, 1.0)
    """
    pairs = one + other
    tail = sum(math.comb(pairs, count) for count in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**pairs)


def record(before: Answers, after: Answers | None = None) -> dict[str, Any]:
    """The results of one model, or of a model before and after training, ready for JSON.

    Args:
        before: the replies of the base.
        after: the replies of the model with what was trained.

    Returns:
        ``before`` and ``after`` by kind, the ``flips`` between them, and each question with its ``replies``.
    """

    def results(answers: Answers) -> dict[str, Any]:
        return {kind: asdict(one) for kind, one in answers.by_kind().items()}

    found: dict[str, Any] = {"before": results(before)}
    if after is not None:
        found |= {"after": results(after), "flips": asdict(before.flips(after))}
    sides = {"before": before} | ({"after": after} if after is not None else {})
    found["replies"] = [
        asdict(reply.question) | {
            side: {"text": answers.replies[place].text, "right": answers.replies[place].right}
            for side, answers in sides.items()
        }
        for place, reply in enumerate(before.replies)
    ]  # fmt: skip
    return found


def _accuracy(replies: Sequence[Reply]) -> Accuracy:
    right, tokens = sum(reply.right for reply in replies), sum(reply.tokens for reply in replies)
    nats = sum(reply.nats for reply in replies) / tokens
    return Accuracy(right, len(replies), right / len(replies), *wilson(right, len(replies)), nats)


def _is_plain(tokenizer: Any) -> bool:
    return getattr(tokenizer, "chat_template", None) is None


def _prompt(tokenizer: Any, question: Question) -> str:
    examples = EXAMPLES.get(question.kind, ())
    if _is_plain(tokenizer):
        solved = "".join(f"Question: {asked}\nAnswer: {answer}\n\n" for asked, answer in examples)
        return f"{solved}Question: {question.question}\nAnswer:"
    texts = [text for pair in examples for text in pair] + [question.question]
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def _answer_row(tokenizer: Any, prompt: list[int], question: Question) -> TokenRow:
    """The prompt and the first accepted answer, of which the answer is counted."""
    space = " " if _is_plain(tokenizer) else ""
    answer = tokenizer(space + question.answers[0], add_special_tokens=False)["input_ids"]
    return TokenRow([*prompt, *answer], [IGNORED] * len(prompt) + list(answer))


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
