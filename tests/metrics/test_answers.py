"""Questions with exact answers: which replies are right, files of questions, batches, and figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.errors import DataError
from orthotune.metrics import answers as module
from orthotune.metrics.answers import EXAMPLES, Answers, Reply, answer_questions, record
from orthotune.metrics.proportions import mcnemar, wilson
from orthotune.metrics.questions import RULES, Question, read_questions
from orthotune.metrics.text_loss import TokenRow, mean_loss
from tests.support.tiny_text import CHAT, make_model, make_tokenizer, write_jsonl

PARIS = ("Paris",)
#: kind, accepted answers, reply, right
TABLE: list[tuple[str, tuple[str, ...], str, bool]] = [
    ("facts", PARIS, "Paris", True),
    ("facts", PARIS, "The capital of France is PARIS.", True),
    ("facts", PARIS, "It is Lyon. Paris is larger.", False),
    ("facts", PARIS, "It is Lyon.\nParis", False),
    ("facts", PARIS, "The Parisians know.", False),
    ("facts", PARIS, "", False),
    ("facts", ("carbon dioxide", "CO2"), "Plants take in CO₂.", True),
    ("facts", ("carbon dioxide", "CO2"), "Dioxide and carbon.", False),
    ("facts", ("twenty-six", "26"), "There are twenty six letters.", True),
    ("facts", ("Bogota",), "Bogotá", True),
    ("arithmetic", ("5",), "5", True),
    ("arithmetic", ("5",), "2 + 3 = 5.", True),
    ("arithmetic", ("5",), "To add 2 and 3, we write:\n\n2 + 3 = 5\n\nIn Python 3 the same holds.", True),
    ("arithmetic", ("5",), "2 + 3 = 6, not 5.", False),
    ("arithmetic", ("5",), "The sum of 2 and 3 is five.", True),
    ("arithmetic", ("5",), "The sum is 4. It is not 5.", False),
    ("arithmetic", ("5",), "15", False),
    ("arithmetic", ("5",), "I do not know.", False),
    ("arithmetic", ("26",), "Twenty-six", True),
    ("arithmetic", ("6",), "Twenty-six", False),
    ("arithmetic", ("100",), "It is one hundred.", True),
    ("arithmetic", ("1000",), "1,000", True),
    ("arithmetic", ("5",), "5.0", True),
    ("instructions", ("HELLO",), "HELLO", True),
    ("instructions", ("HELLO",), ' "HELLO". ', True),
    ("instructions", ("HELLO",), "Hello", False),
    ("instructions", ("HELLO",), "HELLO world", False),
    ("instructions", ("HELLO",), "HELLO\nHELLO", False),
    ("instructions", ("1, 2, 3",), "1,2,3.", True),
    ("instructions", ("1, 2, 3",), "1 2 3", False),
    ("instructions", ("Yes", "yes"), "yes!", False),
    ("instructions", ("The sky is blue",), "The sky  is blue.", True),
]


@pytest.mark.parametrize(("kind", "answers", "reply", "right"), TABLE)
def test_the_rules(kind: str, answers: tuple[str, ...], reply: str, right: bool) -> None:
    assert Question("?", kind, answers).is_answered_by(reply) is right


# The questions of the package.


def test_the_questions_of_the_package() -> None:
    questions = read_questions()
    assert Counter(one.kind for one in questions) == dict.fromkeys(RULES, 40)
    for one in questions:
        assert all(map(one.is_answered_by, one.answers)), one
        # A reply that repeats the question, or a part of the question, is not right.
        if one.kind == "facts":
            assert not one.is_answered_by(one.question), one
        if one.kind == "arithmetic":
            assert not any(one.is_answered_by(word) for word in one.question.split()), one
    solved = {asked for pairs in EXAMPLES.values() for asked, _ in pairs}
    assert not solved & {one.question for one in questions}


LINE = {"question": "What is 2 + 3?", "kind": "arithmetic", "answers": ["5"]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"kind": "facts", "answers": ["5"]}, "line 2. Found: no 'question'"),
        ({**LINE, "question": " "}, "line 2. Found: a question ' '"),
        ({**LINE, "question": 5}, "line 2. Found: a question 5"),
        ({**LINE, "kind": "fact"}, "line 2. Found: kind 'fact'.*Did you mean 'facts'"),
        ({**LINE, "kind": "poems"}, "line 2. Found: kind 'poems'.*Choose facts, arithmetic, instructions"),
        ({**LINE, "kind": ["facts"]}, "line 2. Found: kind \\['facts'\\]"),
        ({**LINE, "answers": []}, "line 2. Found: answers \\[\\]"),
        ({**LINE, "answers": "5"}, "line 2. Found: answers '5'"),
        ({**LINE, "answers": [5]}, "line 2. Found: answers \\[5\\]"),
        ({**LINE, "answers": ["5 or 6"]}, "line 2. Found: the answer '5 or 6', which is not one number"),
        ({**LINE, "answer": "5"}, "line 2. Found: an unknown key 'answer'"),
        (LINE, "line 2. Found: the question of line 1 again"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: dict[str, Any], words: str) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", [LINE, line])
    with pytest.raises(DataError, match=words):
        read_questions(path)


def test_a_file_that_is_no_file_of_questions(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text(json.dumps(LINE) + "\n{\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, words in (("no.jsonl", "no such file"), ("broken.jsonl", "line 2: not JSON"),
                        ("empty.jsonl", "Found: no question")):  # fmt: skip
        with pytest.raises(DataError, match=words):
            read_questions(tmp_path / name)


# A model is asked.


OWN = [
    Question("Say a.", "instructions", ("a",)),
    Question("What is 1 + 1, and please be quick about it?", "arithmetic", ("2",)),
    Question("Why?", "facts", ("because",)),
    Question("Who wrote it, and when?", "facts", ("nobody",)),
    Question("Half of 8?", "arithmetic", ("4",)),
]


def _tokenizer(chat: bool) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}" if chat else None
    return tokenizer


def _model() -> Any:
    """In float64, and with a large head, so that the likeliest token wins clearly and replies differ."""
    model = make_model().double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.mul_(8)
    return model


@pytest.mark.parametrize("chat", [True, False])
def test_a_reply_does_not_depend_on_the_questions_beside_it(chat: bool) -> None:
    model, tokenizer = _model().train(), _tokenizer(chat)
    tokenizer.padding_side = "right"  # of no meaning here
    together = answer_questions(model, tokenizer, OWN, longest=6, at_once=4)
    assert model.training
    alone = [answer_questions(model, tokenizer, [one], longest=6).replies[0] for one in OWN]
    assert [reply.text for reply in together.replies] == [reply.text for reply in alone]
    assert len({reply.text for reply in alone}) > 1
    for one, other in zip(together.replies, alone, strict=True):
        assert one.nats == pytest.approx(other.nats, rel=1e-9) and one.tokens == other.tokens > 0
    backwards = answer_questions(model, tokenizer, OWN[::-1], longest=6, at_once=2)
    assert [reply.text for reply in backwards.replies][::-1] == [reply.text for reply in alone]


def test_the_loss_is_that_of_the_first_answer_alone() -> None:
    model, tokenizer = _model(), _tokenizer(chat=False)
    reply = answer_questions(model, tokenizer, OWN[2:3], longest=2).replies[0]
    prompt, answer = (tokenizer(text)["input_ids"] for text in ("Question: Why?\nAnswer:", " because"))
    row = TokenRow(prompt + answer, [-100] * len(prompt) + answer)
    assert reply.tokens == len(answer) and reply.nats / reply.tokens == pytest.approx(mean_loss(model, [row]).nats)


def test_prompts_of_chats_and_of_models_without_a_template() -> None:
    chat, plain = (module._prompt(_tokenizer(kind), OWN[0]) for kind in (True, False))
    solved = EXAMPLES["instructions"][0]
    assert chat.startswith(f"<user>{solved[0]}<assistant>{solved[1]}<user>")
    assert chat.endswith("<user>Say a.<assistant>")
    assert plain.startswith(f"Question: {solved[0]}\nAnswer: {solved[1]}\n\nQuestion: ")
    assert plain.endswith("\n\nQuestion: Say a.\nAnswer:")
    assert module._prompt(_tokenizer(True), OWN[2]) == "<user>Why?<assistant>"


def test_a_plain_reply_ends_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = _tokenizer(chat=False)
    written = tokenizer("because\nQuestion: another")["input_ids"]
    monkeypatch.setattr(module, "continued", lambda model, tokenizer, prompts, longest: [written for _ in prompts])
    assert answer_questions(_model(), tokenizer, OWN[2:3]).replies[0].text == "because"


def test_cut_offs_that_the_model_comes_with_are_not_used() -> None:
    model, tokenizer = _model(), _tokenizer(chat=True)
    before = answer_questions(model, tokenizer, OWN, longest=6)
    own = model.generation_config
    own.update(repetition_penalty=9.0, do_sample=True, temperature=5.0)
    after = answer_questions(model, tokenizer, OWN, longest=6)
    assert [one.text for one in after.replies] == [one.text for one in before.replies]
    assert model.generation_config is own


# Figures.


def _replies(*right: bool) -> Answers:
    kinds = ["facts", "facts", "instructions", "arithmetic"]
    return Answers(
        [Reply(Question(f"{place}?", kinds[place % 4], ("1",)), "1", one, 2.0 * place, 2)
         for place, one in enumerate(right)]
    )  # fmt: skip


def test_figures_by_kind() -> None:
    found = _replies(True, False, True, True)
    assert list(found.by_kind()) == ["facts", "arithmetic", "instructions", "all"]
    facts = found.by_kind()["facts"]
    assert (facts.right, facts.questions, facts.accuracy, facts.nats) == (1, 2, 0.5, 0.5)
    assert found.scores() == {
        "answers_facts": 0.5, "answers_arithmetic": 1.0, "answers_instructions": 1.0, "answers": 0.75,
        "answers_nats": 12 / 8,
    }  # fmt: skip


def test_flips_are_counted_in_both_directions() -> None:
    before, after = _replies(True, True, True, False), _replies(False, False, True, True)
    flips = before.flips(after)
    assert (flips.right_to_wrong, flips.wrong_to_right, flips.p) == (2, 1, 1.0)
    whole = record(before, after)
    assert whole["replies"][0] == {
        "question": "0?", "kind": "facts", "answers": ("1",),
        "before": {"text": "1", "right": True}, "after": {"text": "1", "right": False},
    }  # fmt: skip
    assert "after" not in record(before) and "flips" not in record(before)
    with pytest.raises(ValueError, match="different questions"):
        before.flips(Answers(after.replies[::-1]))


def test_wilsons_interval() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3: 81 of 263 and 15 of 148; 0 of 20.
    for right, count, ends in ((81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))):
        assert wilson(right, count) == pytest.approx(ends, abs=5e-5)
    assert wilson(20, 20)[1] == 1.0


def test_mcnemars_test() -> None:
    # Two-sided binomial at one half: 1 of 9 gives 2 * (1 + 9) / 512.
    assert mcnemar(1, 8) == mcnemar(8, 1) == pytest.approx(20 / 512)
    assert mcnemar(0, 0) == mcnemar(2, 3) == 1.0
