"""What is learned of each form of rows: as TRL labels them, and of dialogues the answers alone, for any template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl

from orthotune.errors import DataError
from orthotune.runs.quiet import quiet
from orthotune.text.answers import Dialogue, answer_rows
from orthotune.text.data import Examples, Reading, examples_of
from orthotune.text.labelled_rows import LabelledRows, Labelling, check_template, labelled_rows
from orthotune.text.rendered_rows import rendered_rows
from tests.support.tiny_text import make_model, make_tokenizer
from tests.support.trl_tables import table_of

#: Templates of models, as their authors wrote them.
CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
#: SmolLM2-135M-Instruct: a system message of its own where there is none.
SMOLLM2 = CHATML.replace(
    "{% for message in messages %}",
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou "
    "are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}",
)
#: Mistral-7B-Instruct-v0.1: no words before an answer, and roles in turn.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}{% endif %}{% endfor %}"
)
#: Mistral's later ones: the system message stands in the last question, and nowhere once that has its answer.
MISTRAL_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}{% for m in rest %}{% if m['role'] == 'user' %}"
    "{% if loop.last and system is defined %}{{ '[INST] ' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST] ' + m['content'] + '[/INST]' }}{% endif %}{% else %}{{ m['content'] + '</s>' }}{% endif %}"
    "{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + "
    "m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
    "{% set role = m['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + "
    "m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
#: DeepSeek-R1: earlier reasoning is taken away, and so is the newest one.
STRIPS_ALL = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|Assistant|>' + m['content'].split('</think>')[-1] + "
    "'<|end|>' }}{% else %}{{ '<|User|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
#: As Qwen3: the newest reasoning alone is shown.
STRIPS_EARLIER = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('</think>')[-1].lstrip() }}{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = CHATML.replace(
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}",
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% generation %}{{ message['content'] + '<|im_end|>' }}"
    "{% endgeneration %}{{ '\n' }}",
)
TALK = [("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")]
THINKING = [(role, f"<think>T{text[1]}</think>\n{text}" if role == "assistant" else text) for role, text in TALK]
TEMPLATES: dict[str, tuple[str, list[tuple[str, str]], list[str]]] = {
    "chatml": (CHATML, [("system", "S"), *TALK], ["A1<|im_end|>\nA2<|im_end|>\n"]),
    "generation marks": (GENERATION, TALK, ["A1<|im_end|>\nA2<|im_end|>\n"]),
    "default system prompt": (SMOLLM2, TALK, ["A1<|im_end|>\nA2<|im_end|>\n"]),
    "assistant first": (SMOLLM2, TALK[1:], ["A1<|im_end|>\nA2<|im_end|>\n"]),
    "assistant after system": (CHATML, [("system", "S"), *TALK[1:]], ["A1<|im_end|>\nA2<|im_end|>\n"]),
    "two answers": (CHATML, [*TALK[:2], *TALK[1:]], ["A1<|im_end|>\nA1<|im_end|>\nA2<|im_end|>\n"]),
    "question last": (CHATML, [*TALK, TALK[0]], ["A1<|im_end|>\nA2<|im_end|>\n"]),
    "mistral": (MISTRAL, TALK, ["A1<end> A2<end> "]),
    "mistral with system": (MISTRAL_SYSTEM, TALK, ["A1</s>A2</s>"]),
    "llama3": (LLAMA3, [("system", "S"), *TALK], ["A1<|eot_id|>A2<|eot_id|>"]),
    "gemma": (GEMMA, TALK, ["A1<end_of_turn>\nA2<end_of_turn>\n"]),
    "strips all reasoning": (STRIPS_ALL, THINKING, ["\nA1<|end|>\nA2<|end|>"]),
    "strips earlier reasoning": (
        STRIPS_EARLIER, THINKING, ["<think>T1</think>\nA1<|im_end|>\n", "<think>T2</think>\nA2<|im_end|>\n"]
    ),
}  # fmt: skip


def _tokenizer(template: str | None = CHATML) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<pad>"
    tokenizer.chat_template = template
    return tokenizer


def _messages(talk: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"role": role, "content": text} for role, text in talk]


def _learned(tokenizer: Any, rows: list[Any]) -> list[str]:
    return [tokenizer.decode([label for label in row.labels if label != -100]) for row in rows]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_alone_are_learned(name: str) -> None:
    template, talk, learned = TEMPLATES[name]
    tokenizer = _tokenizer(template)
    rows = answer_rows(Dialogue(tokenizer, _messages(talk)))
    assert _learned(tokenizer, rows) == learned
    # What is read is what the template writes, of all messages in the last row.
    assert rows[-1].input_ids == tokenizer.apply_chat_template(_messages(talk), return_dict=True)["input_ids"]
    assert all(label in (-100, token) for row in rows for token, label in zip(row.input_ids, row.labels, strict=True))


FOLDER = Path(trl.__file__).parent / "chat_templates"
#: Templates that read their contents from lists of parts, which texts are not: they write none of a text, or fail.
OF_PARTS = ("idefics3", "llava_next", "smolvlm")
SHIPPED = sorted(
    path.stem for path in FOLDER.glob("*.jinja") if not path.stem.startswith(OF_PARTS) and "_training" not in path.stem
)


@pytest.mark.parametrize("reasoning", [False, True])
def test_every_template_that_trl_ships(reasoning: bool) -> None:
    """Each answer is learned once, no question and no name of a role is, whatever the template does with reasoning."""
    assert len(SHIPPED) > 10
    for name in SHIPPED:
        tokenizer = _tokenizer((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
        rows = answer_rows(Dialogue(tokenizer, _messages(THINKING if reasoning else TALK), place=name))
        learned = "".join(_learned(tokenizer, rows))
        assert (learned.count("A1"), learned.count("A2")) == (1, 1), (name, learned)
        assert not [word for word in ("Q1", "Q2", "user\n", "User") if word in learned], (name, learned)


@pytest.mark.parametrize("name", OF_PARTS)
def test_a_template_that_writes_nothing_of_texts_is_refused(name: str) -> None:
    tokenizer = _tokenizer((FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    rows = [("line 1", {"messages": _messages(TALK)})]
    with pytest.raises(DataError, match="line 1.*(writes none of the messages' contents|refuses the dialogue)"):
        labelled_rows(tokenizer, examples_of(rows, "d"), Labelling())


def test_a_question_that_its_answer_changes_is_refused() -> None:
    """The model is asked with the system message, and would learn to answer without it."""
    dialogue = Dialogue(_tokenizer(MISTRAL_SYSTEM), _messages([("system", "S"), *TALK]), place="d.jsonl, line 7")
    with pytest.raises(DataError, match=r"d.jsonl, line 7, message 3 \(assistant\), with loss_on=answers. Found: .*S"):
        answer_rows(dialogue)


@pytest.mark.parametrize(
    ("template", "talk", "words"),
    [
        (MISTRAL, [*TALK[:1], *TALK[:2]], "must alternate .*, for the roles user, user, assistant"),
        (MISTRAL, TALK[1:], "must alternate .*, for the roles assistant, user, assistant"),
        (GEMMA, [("system", "S"), *TALK], "System role not supported, for the roles system, user"),
        (CHATML, [("assistent", "A")], "Found: the role 'assistent'. Needed: one of .*Did you mean 'assistant'"),
        (CHATML, [("narrator", "A")], "Say who that is: roles={narrator: user}"),
    ],
)
@pytest.mark.parametrize("answers_only", [False, True])
def test_dialogues_that_the_template_refuses_are_named(
    template: str, talk: list[tuple[str, str]], words: str, answers_only: bool
) -> None:
    rows = [("d.jsonl, line 1", {"messages": _messages(TALK)}), ("d.jsonl, line 2", {"messages": _messages(talk)})]
    with pytest.raises(DataError, match=f"d.jsonl, line 2.*{words}"):
        labelled_rows(_tokenizer(template), examples_of(rows, "d.jsonl"), Labelling(answers_only))


def test_dialogues_of_any_column_need_a_template() -> None:
    pair = {"prompt": _messages(TALK[:1]), "chosen": _messages(TALK[1:2]), "rejected": _messages([("bot", "B")])}
    examples = Examples([pair], "preference", "here")
    with pytest.raises(DataError, match="a tokenizer without a chat template"):
        check_template(_tokenizer(None), examples)
    with pytest.raises(DataError, match="here, example 1. Found: the role 'bot'"):
        check_template(_tokenizer(), examples)


def test_roles_that_the_template_names_or_the_data_renames() -> None:
    rows = [("line 1", {"messages": _messages([("narrator", "Q"), ("assistant", "A")])})]
    named = CHATML.replace("{% if add", "{% if messages[0]['role'] == 'narrator' %}{% endif %}{% if add")
    assert labelled_rows(_tokenizer(named), examples_of(rows, "d"), Labelling()).rows
    renamed = examples_of(rows, "d", reading=Reading(roles={"narrator": "user"}))
    assert "<|im_start|>user\nQ" in _decoded(_tokenizer(), labelled_rows(_tokenizer(), renamed, Labelling()))


def _decoded(tokenizer: Any, found: LabelledRows) -> str:
    return "".join(tokenizer.decode(row.input_ids) for row in found.rows)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    arguments = trl.SFTConfig(
        str(tmp_path_factory.mktemp("trainer")), report_to="none", use_cpu=True, bf16=False, max_length=None
    )
    start = table_of(Examples([{"text": "a"}], "text", "here"))
    with quiet():
        return trl.SFTTrainer(make_model(), args=arguments, train_dataset=start, processing_class=_tokenizer())


TOOLS = [{"type": "function", "function": {"name": "f"}}]
LIKE_TRL = {
    "text": [{"text": "one"}, {"text": "two<end>"}],
    "prompt-completion": [{"prompt": "1+1=", "completion": "2"}, {"prompt": "a ", "completion": " b<end>"}],
    "conversational": [{"prompt": _messages(TALK[:3]), "completion": _messages(TALK[3:])}],
    "messages": [{"messages": _messages(TALK)}, {"messages": _messages(TALK[:2]), "tools": TOOLS}],
}


@pytest.mark.parametrize("name", LIKE_TRL)
@pytest.mark.parametrize("completions_only", [False, True])
def test_rows_are_labelled_as_trl_labels_them(trainer: Any, name: str, completions_only: bool) -> None:
    """On the same rows, the tokens and the labels of this package and of TRL's own preparation are the same."""
    tokenizer = _tokenizer(CHATML + "{% for t in tools or [] %}{{ t.function.name }}{% endfor %}")
    examples = examples_of([(f"row {n}", row) for n, row in enumerate(LIKE_TRL[name])], "here")
    trainer.completion_only_loss = completions_only
    with quiet():
        theirs = trainer._prepare_dataset(table_of(examples), tokenizer, trainer.args, False, None, "train")
    found = labelled_rows(tokenizer, examples, Labelling(completions_only=completions_only))
    assert [row.input_ids for row in found.rows] == list(theirs["input_ids"])
    assert [row.labels for row in found.rows] == list(theirs["labels"])
    assert list(found.table()["labels"]) == list(theirs["labels"]) and found.split == 0


def test_an_answer_of_a_prompt_with_several_messages() -> None:
    """Of a completion with calls and results of tools, the assistant's messages alone are answers."""
    completion = [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
        {"role": "tool", "content": "R"},
        {"role": "assistant", "content": "A3"},
    ]
    template = CHATML.replace("message['content'] +", "message['content'] + (message.tool_calls | tojson if "
                              "message.tool_calls else '') +")  # fmt: skip
    row = {"prompt": _messages(TALK[:3]), "completion": completion}
    examples = examples_of([("row", row)], "here")
    learned = [
        _learned(_tokenizer(template), labelled_rows(_tokenizer(template), examples, Labelling(only)).rows)[0]
        for only in (False, True)
    ]
    assert "<|im_start|>tool\nR" in learned[0] and "R<" not in learned[1]
    assert learned[1].startswith('[{"function"') and learned[1].endswith("A3<|im_end|>\n") and "A1" not in learned[1]


def test_dialogues_that_become_several_rows_are_counted() -> None:
    examples = examples_of([("a", {"messages": _messages(THINKING)}), ("b", {"messages": _messages(TALK[:2])})], "here")
    found = labelled_rows(_tokenizer(STRIPS_EARLIER), examples, Labelling(answers_only=True))
    assert (len(found.rows), found.examples, found.split) == (3, [0, 0, 1], 1)


def test_running_text_among_other_rows_is_not_cut_off() -> None:
    rows: list[dict[str, Any]] = [{"text": "0123456789" * 3}, {"prompt": "a", "completion": "b"}]
    examples = Examples(rows, "mixed", "here")
    found = labelled_rows(_tokenizer(), examples, Labelling(max_length=12, texts_in_pieces=True))
    assert (found.examples, found.split) == ([0, 0, 0, 1], 0)
    # Neighbouring pieces share a token, which only the first one of them learns.
    assert "".join(_learned(_tokenizer(), [row])[0][n > 0 :] for n, row in enumerate(found.rows[:3])) == (
        "0123456789" * 3 + "<end>"
    )


def test_alpaca_with_and_without_a_chat_template() -> None:
    row = {"instruction": "Add.", "input": "1, 1", "output": "2"}
    examples = examples_of([("row", row)], "here")
    base, chat = _tokenizer(None), _tokenizer()
    (without,), (written,) = (labelled_rows(one, examples, Labelling()).rows for one in (base, chat))
    assert _learned(base, [without]) == ["2<end>"]
    assert base.decode(without.input_ids).endswith("### Instruction:\nAdd.\n\n1, 1\n\n### Response:\n2<end>")
    assert rendered_rows(base, examples, 500)[0].input_ids == without.input_ids
    assert _learned(chat, [written]) == ["2<|im_end|>\n"]
    assert chat.decode(written.input_ids).startswith("<|im_start|>user\nAdd.\n\n1, 1<|im_end|>")
    with pytest.raises(DataError, match="a tokenizer without a chat template"):
        labelled_rows(base, examples_of([("row", row | {"system": "S"})], "here"), Labelling())
