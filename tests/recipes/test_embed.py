"""Sentence embeddings: three methods on a tiny encoder, exact at the start, on resuming, reloading and merging."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.errors import OrthotuneError, RecipeError
from orthotune.operations.export import export
from orthotune.operations.merge import merge
from orthotune.recipes.embed import EmbedSettings, job, run
from orthotune.recipes.load import load_settings
from orthotune.recipes.text_job import adapter_config
from orthotune.text.encoder import adapted_encoder
from tests.support.head_runs import TOLERANCE, check_resumed, lines, silent
from tests.support.tiny_text import make_tokenizer, write_jsonl

sentence_transformers: Any = pytest.importorskip("sentence_transformers")
METHODS = ("oft", "lora", "full")
TEXTS = ["a green apple", "a saw", "the owl of the barn"]


def pairs(count: int) -> list[dict[str, Any]]:
    """An anchor names a number, its positive the same number in another way; lengths are uneven."""
    return [{"anchor": f"item {n}", "positive": f"{'x' * (n % 5)} number {n} " * (1 + n % 2)} for n in range(count)]


@pytest.fixture(scope="module")
def encoder_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with pooling of its own kind and a dense layer after it."""
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=258, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=40, pad_token_id=1,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "bert")
    make_tokenizer().save_pretrained(folder / "bert")
    transformer = Transformer(str(folder / "bert"), max_seq_length=40)
    modules = [transformer, Pooling(32, pooling_mode="cls"), Dense(32, 16)]
    made = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    made.save_pretrained(str(folder / "encoder"), create_model_card=False)
    return folder / "encoder"


@pytest.fixture(scope="module")
def given(encoder_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EmbedSettings]:
    data = write_jsonl(tmp_path_factory.mktemp("pairs") / "new.jsonl", pairs(40))

    def make(output: Path, **more: Any) -> EmbedSettings:
        values: dict[str, Any] = {"model": str(encoder_path), "data": str(data), "steps": 4, "held_out": 0.25}
        values |= {"batch_size": 6, "max_length": 32, "learning_rate": 2e-2, "warmup": 0, "save_every": 2}
        if more.get("method", "oft") == "oft":
            values["block_size"] = 8
        return EmbedSettings(**(values | more), output=output)

    return make


@pytest.fixture(scope="module")
def runs(given: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    old = write_jsonl(folder / "old.jsonl", [{"anchor": f"old {n}", "positive": f"past {n}"} for n in range(7)])
    settings = {method: given(folder / method, method=method, old_data=str(old)) for method in METHODS}
    return {method: (one, run(one, silent, bar=False)) for method, one in settings.items()}


def _embeddings(folder: Path) -> torch.Tensor:
    encoder = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    return encoder.encode(TEXTS, convert_to_tensor=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_measures_what_is_retrieved_and_forgotten(runs: Any, method: str) -> None:
    settings, record = runs[method]
    assert record.scores_after.keys() == {
        *("mrr", "recall_1", "recall_10"), *("old_mrr", "old_recall_1", "old_recall_10")
    }  # fmt: skip
    steps = lines(settings.output)
    assert [line["step"] for line in steps] == [0, 1, 2, 3, 4] and steps[-1]["train_loss"] < steps[1]["train_loss"]
    assert steps[-1]["gain"] == steps[-1]["mrr"] - steps[0]["mrr"]
    assert steps[-1]["forgetting"] == steps[0]["old_mrr"] - steps[-1]["old_mrr"]


@pytest.mark.parametrize("method", METHODS)
def test_the_output_is_a_folder_of_sentence_transformers(runs: Any, method: str, encoder_path: Path) -> None:
    folder = runs[method][0].output / ("model" if method == "full" else "adapter")
    assert {"modules.json", "1_Pooling", "2_Dense", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert (folder / "model.safetensors").exists() == (method == "full")
    assert (_embeddings(folder) - _embeddings(encoder_path)).abs().max() > 1e-3


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_merging_keeps_pooling_and_embeddings(runs: Any, method: str, tmp_path: Path) -> None:
    output = runs[method][0].output
    merge(output, tmp_path / "merged")
    torch.testing.assert_close(_embeddings(tmp_path / "merged"), _embeddings(output / "adapter"), **TOLERANCE)
    assert not (tmp_path / "merged" / "base").exists()
    if method == "oft":
        export(output, tmp_path / "dense", json.loads((output / "adapter" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ], "dense")  # fmt: skip
        torch.testing.assert_close(_embeddings(tmp_path / "dense"), _embeddings(output / "adapter"), **TOLERANCE)


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_before_the_first_step_the_embeddings_are_those_of_the_base(runs: Any, method: str) -> None:
    settings = runs[method][0]
    parts = job(settings)
    base, model = parts.model(torch.float32), parts.model(torch.float32)
    model = adapted_encoder(model, adapter_config(settings, parts.part(model), [], parts.task))
    assert torch.equal(*(one.encode(TEXTS, convert_to_tensor=True).cpu() for one in (model, base)))
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    # The dense layer after the pooling stays that of the base, and nothing would learn from BERT's own pooler.
    assert {name.split(".")[0] for name in trained} == {"0"} and not any("pooler" in name for name in trained)


@pytest.mark.parametrize("method", ["oft", "full"])
def test_a_run_that_was_cut_ends_with_the_same_bits(runs: Any, method: str, tmp_path: Path) -> None:
    settings, _ = runs[method]
    check_resumed(run, settings.model_copy(update={"output": tmp_path / "cut"}), settings.output)


def test_a_language_model_becomes_an_encoder(given: Any, model_path: Path, tmp_path: Path) -> None:
    run(given(tmp_path / "run", model=str(model_path), steps=2), silent, bar=False)
    merge(tmp_path / "run", tmp_path / "merged")
    expected = _embeddings(tmp_path / "run" / "adapter")
    # The base is stored in float16, and so is what is merged into it.
    torch.testing.assert_close(_embeddings(tmp_path / "merged").float(), expected.float(), rtol=0, atol=5e-3)


SHAPES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "triplets": ({"anchor": "a{n}", "positive": "b{n}", "negative": "c{n}"}, {"mrr", "recall_1", "recall_10"}),
    "scored pairs": ({"sentence1": "a{n}", "sentence2": "b{n}", "score": 0.1}, {"spearman", "pearson"}),
    "labelled pairs": (
        {"sentence1": "a{n}", "sentence2": "b{n}", "label": 1}, {"average_precision", "accuracy", "f1"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loss_follows_from_the_columns(shape: str, given: Any, tmp_path: Path) -> None:
    columns, scores = SHAPES[shape]
    rows = [
        {k: v.format(n=n) if isinstance(v, str) else v * (n % 2) for k, v in columns.items()} for n in range(14)
    ]  # fmt: skip
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    more = {"loss": "triplet", "loss_options": {"triplet_margin": 0.5}} if shape == "triplets" else {}
    record = run(given(tmp_path / "run", data=str(data), steps=1, **more), silent, bar=False)
    assert record.scores_after.keys() == scores


PAIR = {"anchor": "a", "positive": "b"}
SCORED = {"sentence1": "a", "sentence2": "b", "score": 0.5}
WRONG: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "other columns": ([{"question": "a", "answer": "b"}], {}, "columns question, answer. Needed: anchor, positive"),
    "an empty text": ([PAIR, {"anchor": "", "positive": "b"}], {}, "line 2: column 'anchor'. Found: an empty text"),
    "a missing positive": ([PAIR, {"anchor": "a"}], {}, "line 2. Found: columns anchor. Needed: positive"),
    "a text that is a list": ([PAIR, {"anchor": ["a"], "positive": "b"}], {}, "Found: list"),
    "a score beyond 1": ([{**SCORED, "score": 4.5}], {}, "column 'score'. Found: 4.5. Needed: a number from -1 to 1"),
    "a score in words": ([SCORED, {**SCORED, "score": "high"}], {}, "'high'"),
    "a label of 2": ([{"sentence1": "a", "sentence2": "b", "label": 2}], {}, "Needed: 0 or 1"),
    "a loss of other rows": ([SCORED], {"loss": "triplet"}, "loss=triplet.*cosent or angle or cosine"),
    "an unknown option": ([PAIR, PAIR], {"loss_options": {"scal": 2}}, "loss_options.scal.*mean 'scale'"),
    "old data of other columns": ([PAIR, PAIR], {"old": [SCORED]}, "Needed: anchor and positive"),
    "nothing to learn from": ([], {}, "no rows"),
    "no such model": ([PAIR, PAIR], {"model": "./nowhere"}, "model=./nowhere"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_in_words(case: str, given: Any, tmp_path: Path) -> None:
    rows, more, message = WRONG[case]
    options = {key: value for key, value in more.items() if key != "old"}
    options["data"] = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    if "old" in more:
        options["old_data"] = str(write_jsonl(tmp_path / "old.jsonl", more["old"]))
    with pytest.raises(OrthotuneError, match=message):
        run(given(tmp_path / "run", **(options | {"held_out": 0})), silent, bar=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch_size=1"], "batch_size=1 has none"),
        (["loss=infonce"], "loss='infonce'"),
        (["pooling=cls"], "unknown key 'pooling'"),
    ],
)
def test_wrong_settings_are_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(EmbedSettings, None, words)


def test_the_built_in_preset_needs_no_arguments() -> None:
    settings = load_settings(EmbedSettings)
    assert job(settings).data().domains["new"][0].keys() == {"anchor", "positive"}
