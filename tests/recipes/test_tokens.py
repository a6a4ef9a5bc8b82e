"""Tags of words: three methods on a tiny model, alignment, exact at the start, resumed, reloaded and merged."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

from orthotune.errors import OrthotuneError, RecipeError
from orthotune.metrics.tags import tag_scores
from orthotune.recipes.load import load_settings
from orthotune.recipes.text_job import adapter_config
from orthotune.recipes.tokens import TokensSettings, job, run
from orthotune.text.headed_model import adapted
from orthotune.text.word_pieces import UNTAGGED, align
from tests.support.head_runs import TOLERANCE, check_resumed, merged, reloaded, silent
from tests.support.tiny_text import make_tokenizer, write_jsonl

pytest.importorskip("sklearn", reason="scores of classes")
KIND = AutoModelForTokenClassification
METHODS = ("oft", "lora", "full")


def sentences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    chance, rows = random.Random(seed), []
    for number in range(count):
        words = chance.choices(["Ada", "ran", "to", "Rome", "a"], k=1 + number % 5)
        tags = [{"Ada": "B-PER", "Rome": "B-LOC"}.get(word, "O") for word in words]
        rows.append({"words": words, "tags": tags})
    return rows


@pytest.fixture(scope="module")
def given(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TokensSettings]:
    data = write_jsonl(tmp_path_factory.mktemp("tags") / "new.jsonl", sentences(40))

    def make(output: Path, **more: Any) -> TokensSettings:
        values: dict[str, Any] = {"model": str(model_path), "data": str(data), "steps": 4, "piece": "last"}
        values |= {"batch_size": 6, "max_length": 24, "learning_rate": 2e-2, "warmup": 0, "save_every": 2}
        if more.get("method", "oft") == "oft":
            values["block_size"] = 8
        return TokensSettings(**(values | more), output=output)

    return make


@pytest.fixture(scope="module")
def runs(given: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    old = write_jsonl(folder / "old.jsonl", sentences(7, seed=1))
    settings = {method: given(folder / method, method=method, old_data=str(old)) for method in METHODS}
    return {method: (one, run(one, silent, bar=False)) for method, one in settings.items()}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_measures_saves_and_reloads(runs: Any, method: str, model_path: Path) -> None:
    settings, record = runs[method]
    assert {"accuracy", "macro_f1", "loss", "old_accuracy"} <= record.scores_after.keys()
    assert ("span_f1" in record.scores_after) == (find_spec("seqeval") is not None)
    assert record.scores_after["loss"] < record.scores_before["loss"]
    model = reloaded(KIND, model_path, settings.output)
    tokenizer = AutoTokenizer.from_pretrained(settings.output / ("model" if method == "full" else "adapter"))
    right = total = 0
    for row in sentences(7, seed=1):
        numbers = [model.config.label2id[tag] for tag in row["tags"]]
        tokens = align(tokenizer, row["words"], numbers, 24, "last")
        inputs = {key: torch.tensor([value]) for key, value in tokens.items() if key != "labels"}
        with torch.no_grad():
            found = model(**inputs).logits[0].argmax(-1)
        wanted = torch.tensor(tokens["labels"])
        right += int((found == wanted).sum())
        total += int((wanted != UNTAGGED).sum())
    assert right / total == pytest.approx(record.scores_after["old_accuracy"])


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_merging_keeps_the_head_and_the_tags(runs: Any, method: str, model_path: Path, tmp_path: Path) -> None:
    output = runs[method][0].output
    tuned, plain = reloaded(KIND, model_path, output), merged(KIND, output, tmp_path / "merged")
    tokens = torch.tensor([[5, 9, 60, 7]])
    with torch.no_grad():
        torch.testing.assert_close(plain(tokens).logits, tuned(tokens).logits, **TOLERANCE)
    assert plain.config.id2label == tuned.config.id2label == {0: "B-LOC", 1: "B-PER", 2: "O"}


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_before_the_first_step_the_logits_are_those_of_the_base(runs: Any, method: str) -> None:
    settings = runs[method][0]
    parts = job(settings)
    parts.data()
    base, model = parts.model(torch.float32), parts.model(torch.float32)
    model = adapted(model, adapter_config(settings, model, [], parts.task))
    tokens = torch.tensor([[5, 9, 60], [7, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, base(input_ids=tokens).logits)


def test_a_run_that_was_cut_ends_with_the_same_bits(runs: Any, tmp_path: Path) -> None:
    settings, _ = runs["oft"]
    check_resumed(run, settings.model_copy(update={"output": tmp_path / "cut"}), settings.output)


@pytest.mark.parametrize(("piece", "at"), [("first", [0, 2, 7]), ("last", [1, 6, 9])])
def test_one_piece_of_each_word_has_its_tag(piece: Any, at: list[int]) -> None:
    row = align(make_tokenizer(), ["ab", "cdef", "gh"], [4, 5, 6], 99, piece)  # a space goes with the word after it
    assert [(index, label) for index, label in enumerate(row["labels"]) if label != UNTAGGED] == list(
        zip(at, [4, 5, 6], strict=True)
    )
    assert len(row["labels"]) == len(row["input_ids"]) == 10


@pytest.mark.parametrize("piece", ["first", "last"])
def test_a_word_that_is_cut_has_no_tag(piece: Any) -> None:
    rows = {tokens: align(make_tokenizer(), ["ab", "cdef"], [4, 5], tokens, piece) for tokens in (6, 7)}
    tags = {tokens: [label for label in row["labels"] if label != UNTAGGED] for tokens, row in rows.items()}
    assert tags == {6: [4], 7: [4, 5]}


def test_spans_are_scored_by_seqeval() -> None:
    pytest.importorskip("seqeval")
    names = ["B-PER", "I-PER", "O"]
    # Two spans, of which one is found: precision 1, recall 1/2, F1 2/3.
    known, found = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 2])
    scores = tag_scores(torch.eye(3)[found] * 9, known, [3, 1], names)
    assert scores["span_f1"] == pytest.approx(2 / 3) and scores["accuracy"] == 0.75


ROW = {"words": ["Ada", "ran"], "tags": ["B-PER", "O"]}
WRONG: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "words and tags of unlike length": (
        [ROW, {"words": ["a", "b"], "tags": ["O"]}],
        {},
        "line 2. Found: 2 words and 1",
    ),
    "an unknown tag in eval": ([ROW], {"eval": [{"words": ["a"], "tags": ["B-LOC"]}]}, "tag 'B-LOC'.*B-PER, O"),
    "one tag only": ([{"words": ["a"], "tags": ["O"]}], {}, "one tag, 'O'"),
    "an empty word": ([ROW, {"words": ["a", " "], "tags": ["O", "O"]}], {}, "an empty word"),
    "a missing column": ([{"words": ["a"], "tag": ["O"]}], {}, "columns words, tag. Needed: tags"),
    "a text in the place of words": ([{"words": "Ada ran", "tags": ["O"]}], {}, "'words'. Found: str 'Ada ran'"),
    "tags that are no tags": ([{"words": ["a"], "tags": [None]}], {}, "'tags'. Found: list"),
    "no words": ([{"words": [], "tags": []}], {}, "'words'. Found: list"),
    "no rows": ([], {}, "no rows"),
    "no such file": ([ROW], {"data": "nowhere.jsonl"}, "no such file"),
    "no such model": ([ROW], {"model": "./nowhere"}, "no such directory"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_in_words(case: str, given: Any, tmp_path: Path) -> None:
    rows, more, message = WRONG[case]
    options: dict[str, Any] = {"data": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "held_out": 0}
    if "eval" in more:
        options["eval_data"] = str(write_jsonl(tmp_path / "eval.jsonl", more["eval"]))
    options |= {key: value for key, value in more.items() if key != "eval"}
    with pytest.raises(OrthotuneError, match=message):
        run(given(tmp_path / "run", **options), silent, bar=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"), [(["piece=middle"], "piece='middle'"), (["tagset=iob"], "unknown key 'tagset'")]
)
def test_wrong_settings_are_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(TokensSettings, None, words)


def test_the_built_in_preset_needs_no_arguments() -> None:
    data, config = job(load_settings(TokensSettings)).data()
    assert len(data.train) > 100 and sorted(config.label2id) == ["B-CODE", "I-CODE", "O"]
