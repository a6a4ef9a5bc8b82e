"""One comparison on several rungs: the settings of each, one table, one image."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from orthotune.errors import RecipeError
from orthotune.experiments import ladder
from orthotune.experiments.text_task import SFTTask

TASK = SFTTask()


def test_every_rung_is_a_comparison_and_the_table_holds_all(
    model_path: Path, text_path: Path, old_path: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "ladder.yaml"
    recipe.write_text(
        f"""\
        output: {tmp_path / "ladder"}
        model: {model_path}
        data: {text_path}
        old_data: {old_path}
        batch_size: 2
        max_length: 32
        block_size: 16
        steps: 1
        methods: [oft, lora]
        learning_rates: {{oft: [0.01], lora: [0.01]}}
        rungs:
          one: {{}}
          two: {{steps: 5, learning_rates: {{oft: [0.02], lora: [0.005]}}}}
        """
    )
    # A setting on the command line is one of every rung, and goes before the file's.
    rungs = ladder.load_rungs(TASK, recipe, ["steps=2", "rungs.one.seeds=[3]"])
    assert [(one.sft["steps"], one.seeds) for one in rungs.values()] == [(2, [3]), (2, [0])]
    assert rungs["two"].learning_rates == {"oft": [0.02], "lora": [0.005]}

    table = ladder.run(TASK, rungs, say=lambda _: None)
    assert [line[:2] for line in table.lines] == [["one", "oft"], ["one", "lora"], ["two", "oft"], ["two", "lora"]]
    home = tmp_path / "ladder"
    with (home / "ladder.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rung"], row["run"]) for row in rows][:2] == [
        ("one", "oft-lr0.01-seed3"),
        ("one", "lora-lr0.01-seed3"),
    ]
    written = json.loads((home / "ladder.json").read_text())
    for name in ("one", "two"):
        assert written[name] == json.loads((home / name / "comparison.json").read_text())["summary"]
    difference = written["two"]["contenders"]["oft"]["at"]["1"]["difference"]
    assert table.lines[2][-1] == ("-" if difference is None else f"{difference:+.3f}")
    assert (home / "ladder.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("rungs=[a, b]", r"rungs=\['a', 'b'\]. Needed: settings by name"),
        ("rungs={}", "Needed: settings by name"),
        ("rungs={a: 3}", "rungs.a=3. Needed: settings by name"),
        ("rungs={a/b: {}}", "a rung called 'a/b'. Needed: a name that can be that of a folder"),
        ("rungs={a: {output: x}}", "output of the rung a. Leave it out: the folder is OUTPUT/a"),
        ("rungs={a: {stpes: 3}}", "rung a: .*unknown key 'stpes'. Did you mean 'steps'"),
        ("rungs={a: {steps: x}}", "rung a: .*steps='x'. Needed: a valid integer"),
    ],
)
def test_faults_name_the_rung(words: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        ladder.load_rungs(TASK, None, [words])


def test_a_rung_that_does_not_fit_its_model_is_refused_before_the_first_run_of_any(
    model_path: Path, text_path: Path, old_path: Path, tmp_path: Path
) -> None:
    every = [
        f"model={model_path}",
        f"data={text_path}",
        f"old_data={old_path}",
        "steps=1",
        f"output={tmp_path / 'all'}",
    ]
    rungs = ladder.load_rungs(
        TASK, None, [*every, "methods=[oft]", "rungs={good: {block_size: 16}, bad: {block_size: 7}}"]
    )
    with pytest.raises(RecipeError, match="rung bad: block_size=7 does not divide"):
        ladder.run(TASK, rungs, say=lambda _: None)
    assert not list(tmp_path.glob("**/*.safetensors"))
