"""The tokens of preferences are those of TRL's trainers, and what is lost of them is counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer

from orthotune.errors import DataError
from orthotune.text.preference_rows import kept_rows, labels_needed, learned_rows, refuse_lost, tokenized
from orthotune.text.preferences import labelled_of, pairs_of, preference_table
from tests.support.tiny_text import CHAT, make_tokenizer

TEXTS = [{"prompt": f"count {n}: ", "chosen": "up " * (1 + n % 3), "rejected": "down"} for n in range(5)]
#: A template that shows tools, and marks where the next answer begins.
TOOL_CHAT = (
    "{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}"
)
DIALOGUES: list[dict[str, Any]] = [
    {
        "prompt": [{"role": "system", "content": "Be short."}, {"role": "user", "content": f"{n} + 1?"}],
        "chosen": [{"role": "assistant", "content": str(n + 1)}],
        "rejected": [{"role": "assistant", "content": "I do not know."}],
        **({"tools": [{"name": "add"}]} if n % 2 else {}),
    }
    for n in range(3)
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    found = make_tokenizer()
    found.chat_template = TOOL_CHAT
    return found


def _prepared(trainer: Any, config: Any, table: Any, tokenizer: Any, folder: Path, **more: Any) -> list[dict[str, Any]]:
    """The rows that a trainer of TRL makes, without making the trainer: none of this needs a model."""
    arguments = config(output_dir=str(folder), max_length=None, bf16=False, use_cpu=True, per_device_train_batch_size=2)
    made = SimpleNamespace(_tokenizer=tokenizer, **more)
    return list(trainer._prepare_dataset(made, table, tokenizer, arguments, "train"))


@pytest.mark.parametrize("rows", [TEXTS, DIALOGUES], ids=["texts", "dialogues"])
def test_tokens_are_those_of_trl(rows: list[dict[str, Any]], tokenizer: Any, tmp_path: Path) -> None:
    pairs = pairs_of([(f"line {n}", row) for n, row in enumerate(rows)], "pairs")
    own = [tokenized(tokenizer, row) for row in pairs.rows]
    theirs = _prepared(DPOTrainer, DPOConfig, preference_table(pairs), tokenizer, tmp_path)
    assert [(one.prompt, *one.answers) for one in own] == [
        (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in theirs
    ]
    rewarded = _prepared(RewardTrainer, RewardConfig, preference_table(pairs), tokenizer, tmp_path)
    entire = [[one.prompt + answer for answer in one.answers] for one in own]
    assert entire == [[row["chosen_ids"], row["rejected_ids"]] for row in rewarded]
    labelled = labelled_of([(f"line {n}", row) for n, row in enumerate(rows)], "pairs")
    single = [tokenized(tokenizer, row) for row in labelled.rows]
    more = {"calculate_KL": False, "desirable_weight": 1.0, "undesirable_weight": 1.0}
    theirs = _prepared(KTOTrainer, KTOConfig, preference_table(labelled), tokenizer, tmp_path, **more)
    assert [(one.prompt, one.answers[0], one.label) for one in single] == [
        (row["prompt_ids"], row["completion_ids"], row["label"]) for row in theirs
    ]


def test_what_is_lost_is_counted_and_refused(tokenizer: Any) -> None:
    rows = [*TEXTS, {"prompt": "a" * 12, "chosen": "b" * 30, "rejected": "c"},  # cut
            {"prompt": "a" * 40, "chosen": "b", "rejected": "c"},  # the prompt alone is too long
            {"prompt": "a", "chosen": "b" * 30 + "c", "rejected": "b" * 30 + "d"},  # the same in 24 tokens
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            {"prompt": "a", "chosen": "", "rejected": "b"}]  # fmt: skip
    pairs = pairs_of([(f"line {n}", row) for n, row in enumerate(rows)], "pairs")
    kept, tokens, counts = kept_rows(tokenizer, pairs, 24)
    assert (counts.examples, counts.cut, counts.dropped, counts.blank, counts.equal) == (8, 1, 2, 1, 1)
    assert len(kept.rows) == len(tokens) == 6 and counts.lost == 0.4
    assert counts.tokens == sum(len(row.input_ids) for one in tokens for row in one.rows(24))
    assert counts.record()["equal"] == 1 and "1 pairs have the same answer twice" in counts.sentences(24)
    assert learned_rows(tokens, 24)[0].labels == [-100] * len("count 0: ") + tokens[0].answers[0]
    with pytest.raises(DataError, match="2 of 8 examples with nothing to learn in 24 tokens, 1 rows with an empty"):
        refuse_lost(counts, "pairs", 0.3, 24)
    _, _, complete = kept_rows(tokenizer, pairs, 24, complete=True)
    assert (complete.dropped, complete.cut) == (3, 0)
    with pytest.raises(DataError, match="Needed: an example to learn from. Pass a larger max_length"):
        refuse_lost(kept_rows(tokenizer, pairs, 2)[2], "pairs", 1.0, 2)


def test_dialogues_need_a_chat_template_and_labels_of_both_kinds(tokenizer: Any) -> None:
    pairs = pairs_of([("line 1", DIALOGUES[0])], "pairs")
    with pytest.raises(DataError, match="a tokenizer without a chat template"):
        kept_rows(make_tokenizer(), pairs, 64)
    labelled = labelled_of([("line 1", TEXTS[0])], "pairs")
    labels_needed(labelled, "data")
    one = labelled_of([("line 1", TEXTS[0])], "pairs")
    with pytest.raises(DataError, match="eval_data 'pairs'. Found: 1 answers, all with the same label"):
        labels_needed(type(one)(one.rows[:1], one.format, one.source), "eval_data")
