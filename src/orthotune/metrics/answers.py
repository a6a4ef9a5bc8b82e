"""How many short questions with exact answers a language model answers right, before and after finetuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orthotune.metrics.decoding import continued
from orthotune.metrics.proportions import mcnemar, wilson
from orthotune.metrics.questions import RULES, Question
from orthotune.metrics.text_loss import IGNORED, TokenRow, row_losses

#: Tokens of a reply, and replies that are written at the same time.
LONGEST, AT_ONCE = 32, 16
#: Solved examples of a kind, which stand before each of its questions: a small model learns how short to reply.
EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "instructions": (
        ("Write the word lamp in capital letters.", "LAMP"),
        ("Name the color of blood. Reply with one word.", "Red"),
        ("Answer only with yes or no: Is grass blue?", "No"),
        ("Repeat this sentence: It is late.", "It is late."),
    ),
}


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
