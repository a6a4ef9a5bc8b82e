"""Classification: three methods on a tiny model, exact in its first scores, on resuming, reloading and merging."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from orthotune.cli.main import app
from orthotune.errors import ConfigError, DataError, OrthotuneError, RecipeError
from orthotune.files.tables import write_table
from orthotune.operations.merge import merge
from orthotune.recipes.classify import ClassifySettings, job, run
from orthotune.recipes.load import load_settings
from orthotune.recipes.magnitude import load_magnitude
from orthotune.recipes.magnitude import run as fit_magnitudes
from orthotune.runs.record import RunRecord
from orthotune.text.headed_model import adapted
from tests.support.head_runs import TOLERANCE, check_resumed, lines, merged, reloaded, silent
from tests.support.tiny_text import write_jsonl

pytest.importorskip("sklearn", reason="scores of classes")
KIND = AutoModelForSequenceClassification
METHODS = ("oft", "lora", "full")
WORDS = {"fruit": ["apple", "plum", "pear"], "tool": ["saw", "hammer", "axe"], "animal": ["cat", "dog", "owl"]}


def examples(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Texts of uneven lengths, of three classes of uneven sizes."""
    chance = random.Random(seed)
    kinds = [chance.choice(["fruit", "fruit", "tool", "animal"]) for _ in range(count)]
    return [{"text": " ".join(chance.choices(WORDS[kind], k=1 + n % 3)), "label": kind} for n, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    write_jsonl(folder / "new.jsonl", examples(45))
    write_table(folder / "old.csv", examples(7, seed=1))
    return folder


@pytest.fixture(scope="module")
def given(data: Path, model_path: Path) -> Callable[..., ClassifySettings]:
    def make(output: Path, **more: Any) -> ClassifySettings:
        values: dict[str, Any] = {"model": str(model_path), "data": str(data / "new.jsonl"), "steps": 4}
        values |= {"batch_size": 6, "max_length": 24, "learning_rate": 2e-2, "warmup": 0, "save_every": 2}
        if more.get("method", "oft") == "oft":
            values["block_size"] = 8
        return ClassifySettings(**(values | more), output=output)

    return make


@pytest.fixture(scope="module")
def runs(given: Callable[..., Any], data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    settings = {m: given(folder / m, method=m, old_data=str(data / "old.csv"), eval_every=2) for m in METHODS}
    return {method: (one, run(one, silent, bar=False)) for method, one in settings.items()}


def _loss(model: Any, output: Path, path: Path) -> float:
    """The loss on the older data, text by text."""
    folder = output / ("model" if (output / "model").is_dir() else "adapter")
    tokenizer, losses = AutoTokenizer.from_pretrained(folder), []
    for line in path.read_text().splitlines()[1:]:
        text, label = line.split(",")
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0].float()
        losses.append(-logits.log_softmax(-1)[model.config.label2id[label]].item())
    return sum(losses) / len(losses)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_measures_saves_and_reloads(runs: Any, method: str, data: Path, model_path: Path) -> None:
    settings, record = runs[method]
    assert {"accuracy", "macro_f1", "loss", "old_accuracy", "old_loss"} <= record.scores_after.keys()
    assert record.scores_after["loss"] < record.scores_before["loss"]
    steps = lines(settings.output)
    assert [line["step"] for line in steps] == [0, 1, 2, 3, 4]
    gained = steps[-1]["accuracy"] - steps[0]["accuracy"]
    assert steps[-1]["gain"] == gained and steps[0]["forgetting"] == 0.0
    model = reloaded(KIND, model_path, settings.output)
    assert list(model.config.id2label.values()) == ["animal", "fruit", "tool"]
    # One text alone and a padded batch: the same sums in another order.
    assert _loss(model, settings.output, data / "old.csv") == pytest.approx(record.scores_after["old_loss"], abs=1e-4)


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_merging_keeps_the_head_and_the_labels(runs: Any, method: str, model_path: Path, tmp_path: Path) -> None:
    output = runs[method][0].output
    tuned, plain = reloaded(KIND, model_path, output), merged(KIND, output, tmp_path / "merged")
    tokens = AutoTokenizer.from_pretrained(output / "adapter")("a hammer", return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(plain(**tokens).logits, tuned(**tokens).logits, **TOLERANCE)
    assert plain.config.id2label == tuned.config.id2label


def test_files_of_a_base_without_the_head_are_not_merged(runs: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="architectures .*LlamaForCausalLM.* in the base.*without --stream"):
        merge(runs["oft"][0].output, tmp_path / "merged", stream=True)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_before_the_first_step_the_logits_are_those_of_the_base(runs: Any, method: str) -> None:
    from orthotune.recipes.text_job import adapter_config

    settings = runs[method][0]
    parts = job(settings)
    parts.data()
    base, model = parts.model(torch.float32), parts.model(torch.float32)
    model = adapted(model, adapter_config(settings, model, [], "SEQ_CLS"))
    tokens = torch.tensor([[5, 9, 60], [7, 7, 8]])
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits, base(input_ids=tokens).logits)


def test_a_run_that_was_cut_ends_with_the_same_bits(runs: Any, tmp_path: Path) -> None:
    settings, _ = runs["oft"]
    check_resumed(run, settings.model_copy(update={"output": tmp_path / "cut"}), settings.output)


def test_a_rule_ends_a_run_and_the_best_result_is_kept(given: Any, tmp_path: Path) -> None:
    settings = given(tmp_path / "best", eval_every=1, stop_when={"patience": 2}, result="best", learning_rate=1e-9)
    record = run(settings, silent, bar=False)
    assert record.stopped_by is not None and record.stopped_by["step"] == 2 and record.result_step == 0
    assert any("in units of accuracy" in note for note in record.notes)


CASES: dict[str, tuple[list[dict[str, Any]], set[str], str]] = {
    "several labels": (
        [{"text": f"t{n}", "label": [["a"], ["a", "b"], []][n % 3]} for n in range(12)],
        {"exact_match", "micro_f1", "macro_f1", "loss"}, "multi_label_classification",
    ),
    "numbers": (
        [{"text": f"t{n}", "label": n / 4} for n in range(12)], {"loss", "mean_absolute_error", "pearson"}, "regression"
    ),
    "pairs": (
        [{"text": f"t{n}", "text2": f"u{n % 4}", "label": n % 2} for n in range(12)],
        {"accuracy", "macro_f1", "loss"}, "single_label_classification",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_kinds_of_labels(case: str, given: Any, tmp_path: Path) -> None:
    rows, scores, problem = CASES[case]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    record: RunRecord = run(given(tmp_path / "run", data=str(data), steps=2, held_out=0.25), silent, bar=False)
    assert record.scores_after.keys() == scores
    config = json.loads((tmp_path / "run" / "adapter" / "base" / "config.json").read_text())
    assert config["problem_type"] == problem


def test_the_order_of_the_classes_of_a_base_with_a_head_is_kept(
    given: Any, runs: Any, data: Path, tmp_path: Path
) -> None:
    merge(runs["oft"][0].output, tmp_path / "classifier")
    config = json.loads((tmp_path / "classifier" / "config.json").read_text())
    config["id2label"] = {"0": "tool", "1": "animal", "2": "fruit"}
    (tmp_path / "classifier" / "config.json").write_text(json.dumps(config))
    found = job(given(tmp_path / "run", model=str(tmp_path / "classifier"))).data()[1]
    assert list(found.id2label.values()) == ["tool", "animal", "fruit"]


def test_magnitudes_are_fitted_to_a_run(runs: Any, tmp_path: Path) -> None:
    output = runs["oft"][0].output
    record = fit_magnitudes(
        load_magnitude(None, [f"adapter={output}", f"output={tmp_path / 'fit'}"]), silent, bar=False
    )
    assert record.steps == 2 and record.scores_before["loss"] == pytest.approx(
        runs["oft"][1].scores_after["loss"], abs=1e-5
    )


def test_the_built_in_preset_needs_no_arguments() -> None:
    settings = load_settings(ClassifySettings)
    assert settings.eval_data == "text-world/passages/held_out"
    parts = job(settings)
    data, config = parts.data()
    assert len(data.train) > 200 and len(config.id2label) == 5


ROW = {"text": "fine", "label": "good"}
BAD = {"text": "poor", "label": "bad"}
WRONG: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "unknown label in eval": ([ROW, BAD], {"eval": [{"text": "so", "label": "god"}]}, "label 'god'.*one of bad, good"),
    "one class only": ([ROW, ROW], {}, "one class, 'good'.*at least two classes"),
    "empty text": ([ROW, {"text": " ", "label": "bad"}], {}, r"line 2: column 'text'. Found: an empty text"),
    "missing column": ([{"text": "fine", "labl": "good"}], {}, "columns text, labl. Needed: label"),
    "labels of mixed kinds": ([ROW, {"text": "poor", "label": 1}], {}, "a name .*line 1.* and a number .*line 2"),
    "a text that is a number": ([ROW, {"text": 3, "label": "bad"}], {}, "line 2: column 'text'. Found: int '3'"),
    "pairs in some rows": ([{**ROW, "text2": "a"}, BAD], {}, "Needed: text2"),
    "no rows": ([], {}, "no rows"),
    "an object as a label": ([{"text": "a", "label": {"x": 1}}], {}, "column 'label'. Found: dict"),
    "a name in a regression": ([ROW, BAD], {"problem": "regression"}, "'good'. Needed: a finite number"),
    "lists as one class": ([{"text": "a", "label": ["x"]}], {"problem": "single"}, "lists of labels"),
    "an empty name": ([ROW, {"text": "a", "label": ""}], {}, "the name of a class"),
    "no such file": ([ROW, BAD], {"data": "nowhere.csv"}, "no such file"),
    "no such model": ([ROW, BAD], {"model": "./nowhere"}, "no such directory"),
    "old data without the label": ([ROW, BAD], {"old": [{"text": "a"}]}, "Needed: label"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_in_words(case: str, given: Any, tmp_path: Path) -> None:
    rows, more, message = WRONG[case]
    files = {"data": write_jsonl(tmp_path / "rows.jsonl", rows)}
    for key in {"eval", "old"} & more.keys():
        files[f"{key}_data"] = write_jsonl(tmp_path / f"{key}.jsonl", more[key])
    options = {key: str(path) for key, path in files.items()}
    options |= {key: value for key, value in more.items() if key not in ("eval", "old")}
    with pytest.raises(OrthotuneError, match=message):
        run(given(tmp_path / "run", held_out=0, **options), silent, bar=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["labels=5"], "unknown key 'labels'"),
        (["eval_tokens=5"], "eval_tokens has no meaning for train classify"),
        (["stop_when={forgetting: 1}"], "old_data names none"),
        (["problem=binary"], "problem='binary'"),
        (["held_out=0.9"], "held_out=0.9"),
        (["distributed=fsdp2"], "measures with a complete model"),
        (["model=elsewhere"], "data is missing"),
    ],
)
def test_wrong_settings_are_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(ClassifySettings, None, words)


def test_the_command_prints_scores_and_writes_a_report(data: Path, model_path: Path, tmp_path: Path) -> None:
    words = [f"model={model_path}", "steps=1", "block_size=8", "batch_size=4", "max_length=16", "warmup=0"]
    done = CliRunner().invoke(
        app, ["train", "classify", "--data", str(data / "new.jsonl"), *words, "-o", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, (done.output, done.exception)
    assert "accuracy" in done.output and "nats/token" not in done.output
    assert "accuracy" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    refused = CliRunner().invoke(app, ["evaluate", "answers", str(tmp_path / "run")])
    assert refused.exit_code == 2
    assert "no finished run of a language model, recipe 'classify'" in " ".join(refused.output.split())


def test_csv_and_hub_rows_are_read(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [{"text": "x", "label": "1"}, {"text": "y", "label": "2.5"}])
    parts = job(ClassifySettings(data=str(tmp_path / "a.csv"), held_out=0))
    assert parts.data()[1].problem_type == "regression"
    # Whole numbers are names: 007 is another one than 7.
    write_table(tmp_path / "codes.csv", [{"text": "x", "label": "007"}, {"text": "y", "label": "7"}])
    names = job(ClassifySettings(data=str(tmp_path / "codes.csv"), held_out=0)).data()[1].id2label.values()
    assert set(names) == {"007", "7"}
    with pytest.raises(DataError, match="no such file or directory, and the hub"):
        job(ClassifySettings(data="owner/none"))
