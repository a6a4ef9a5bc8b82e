from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from orthotune.errors import OrthotuneError, RecipeError
from orthotune.experiments import compare, strengths
from orthotune.experiments import grid as grids
from orthotune.experiments.strengths import Again, measure
from orthotune.experiments.text_task import EVAL_TOKENS, CompareSFTSettings, SFTTask
from orthotune.metrics.text_loss import mean_loss
from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings

TASK = SFTTask()


@pytest.fixture
def grid(model_path: Path, text_path: Path, old_path: Path, tmp_path: Path) -> CompareSFTSettings:
    return _settings(model_path, text_path, old_path, tmp_path / "grid")


def _settings(model: Path, data: Path, old_data: Path, output: Path) -> CompareSFTSettings:
    job = {"model": str(model), "data": str(data), "old_data": str(old_data), "batch_size": 2}
    return CompareSFTSettings(
        methods=["oft", "lora"],
        learning_rates={"oft": [1e-3, 1e-2], "lora": [1e-2]},
        output=output,
        sft=job | {"steps": 2, "max_length": 32, "block_size": 16},
    )


Ran = tuple[CompareSFTSettings, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ran(model_path: Path, text_path: Path, old_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A comparison whose runs are finished, one after another, and its rows."""
    settings = _settings(model_path, text_path, old_path, tmp_path_factory.mktemp("ran") / "grid")
    return settings, compare.run(TASK, settings, say=lambda _: None)


def test_a_block_size_that_does_not_divide_is_refused_before_the_first_run(grid: CompareSFTSettings) -> None:
    variants = {"small": {"method": "oft", "block_size": 16}, "odd": {"method": "oft", "block_size": 7}}
    asked = grid.model_copy(update={"methods": [], "learning_rates": {}, "variants": variants, "against": "small"})
    with pytest.raises(OrthotuneError, match="block_size=7 does not divide the .* features of layer"):
        compare.run(TASK, asked, say=lambda _: None)
    assert not list(grid.output.glob("**/*.safetensors"))


def test_held_out_rows_are_measured_before_and_after_a_run_unless_a_rule_needs_more(grid: CompareSFTSettings) -> None:
    def every(**given: Any) -> set[int | None]:
        settings = grid.model_copy(update={"sft": grid.sft | given})
        rates = grids.rates_of(TASK, settings)
        made = grids.cells(TASK, settings, rates, settings.first_seeds, first=True)
        return {cell.settings.eval_every for cell in made}

    assert every(steps=40) == {40}
    assert every(steps=40, eval_every=8) == {8}
    assert every(steps=40, result="best") == {None} and every(steps=40, stop_when={"patience": 2}) == {None}
    assert every(steps=None, epochs=2.0) == {None}  # how many steps these are is known when the data are read


def test_some_rows_are_measured_unless_the_model_is_the_built_in_one(grid: CompareSFTSettings) -> None:
    def tokens(**given: Any) -> set[int | None]:
        settings = grid.model_copy(update={"sft": grid.sft | given})
        made = grids.cells(TASK, settings, grids.rates_of(TASK, settings), [0], first=True)
        return {cell.settings.eval_tokens for cell in made}

    assert tokens() == {EVAL_TOKENS}
    assert tokens(eval_tokens=100) == {100} and tokens(eval_tokens=None) == {None}
    assert tokens(model="text-world") == {None}


@pytest.mark.parametrize("parallel", [1, 2])
def test_a_comparison_says_what_measuring_will_cost_before_its_first_run(
    grid: CompareSFTSettings, monkeypatch: pytest.MonkeyPatch, parallel: int
) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise AssertionError("a run began")

    monkeypatch.setattr(grids, "records", refuse)
    said: list[str] = []
    new = grid.model_copy(
        update={"strengths": [1.0, 0.5], "parallel": parallel, "test_data": "texts", "old_test_data": "texts"}
    )
    with pytest.raises(AssertionError, match="a run began"):
        compare.run(TASK, new, say=said.append)
    # Three runs: before and after each of them, and at the strengths 1 and 0.5; the base once in each process.
    times = 2 * 3 + 2 * 3 + parallel
    processes = "" if parallel == 1 else ", in 2 processes"
    assert re.match(
        rf"3 of 3 runs to do{processes}; evaluation: \d+ target rows \([\d,]+ tokens\) and \d+ source rows "
        rf"\([\d,]+ tokens\) in \d+ batches, {times} times; about [\d.]+ s each by the first batch, [\d.]+ s in all",
        said[0],
    )
    assert "once more, on the test data" in said[1] and len(said) == 2


def test_a_finished_comparison_costs_nothing_more(ran: Ran) -> None:
    settings, _ = ran
    said: list[str] = []
    compare.run(TASK, settings, say=said.append)
    assert not [line for line in said if "evaluation" in line]
    runs = [cell.settings for cell in grids.cells(TASK, settings, settings.learning_rates, [0, 1], first=True)]
    (line,) = TASK.forecast(settings, runs)
    assert line.startswith("3 of 6 runs to do; evaluation: ") and ", 6 times; " in line


def test_a_measurement_at_strengths_says_first_what_it_costs(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strengths, "_BASES", {})
    settings, rows = ran
    run = SFTSettings(**json.loads((settings.output / rows[0]["run"] / "run.json").read_text())["settings"])
    lines: list[str] = []
    measure(Again(run=run, strengths=[0.5, 0.25], file="cost.json"), lines.append)
    assert lines[0].startswith("evaluation: ") and "3 times; about" in lines[0]
    measure(Again(run=run, strengths=[0.5], file="cost.json"), lines.append)  # known already
    assert len(lines) == 1


def test_a_grid_is_run_once_and_written_down(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, rows = ran
    assert [row["run"] for row in rows] == ["oft-lr0.001-seed0", "oft-lr0.01-seed0", "lora-lr0.01-seed0"]
    assert rows[0]["gain"] != rows[1]["gain"]
    assert rows[0]["orthogonality_error"] < 5e-6 and rows[2]["orthogonality_error"] is None
    # LoRA was sized after OFT: at most half a rank's 992 parameters away.
    assert abs(rows[2]["trainable_parameters"] - rows[0]["trainable_parameters"]) <= 992 / 2
    home = grid.output
    assert json.loads((home / "comparison.json").read_text())["runs"] == rows
    with (home / "comparison.csv").open() as file:
        assert [float(row["gain"]) for row in csv.DictReader(file)] == [row["gain"] for row in rows]
    assert (home / "frontier.png").read_bytes().startswith(b"\x89PNG")

    def refuse(*given: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(sft, "_trainer", refuse)
    assert compare.run(TASK, grid, say=lambda _: None) == rows


def test_variants_are_measured_at_strengths_chosen_and_tested(grid: CompareSFTSettings, text_path: Path) -> None:
    """Contenders of one's own, other strengths, and test data for the frontiers alone."""
    settings = CompareSFTSettings(
        methods=["lora"], learning_rates={"lora": [1e-2]}, strengths=[1.0, 0.5], output=grid.output, sft=grid.sft,
        variants={
            "outputs": {"rotation": {"side": "out"}, "learning_rates": [1e-2]},
            "dora": {"method": "lora", "lora": {"use_dora": True}, "learning_rates": [1e-2]},
            "all": {"method": "full", "learning_rates": [1e-3]},
        },
        test_data=str(text_path), old_test_data=str(grid.sft["old_data"]),
    )  # fmt: skip
    said: list[str] = []
    rows = compare.run(TASK, settings, say=said.append)
    names = ["lora", "outputs", "dora", "all"]
    assert [(row["method"], row["strength"]) for row in rows] == [(name, t) for name in names for t in (1.0, 0.5)]
    for name in names:
        whole, half = (row for row in rows if row["method"] == name)
        assert whole["new_before"] == pytest.approx(half["new_before"], rel=1e-6)
        # Two steps hardly move: half of it is about half of the gain.
        assert 0 < half["gain"] < whole["gain"]
        assert half["gain"] / whole["gain"] == pytest.approx(0.5, abs=0.1)
        on_test = [row for row in (whole, half) if row["chosen"]]
        assert on_test and all(row["test_gain"] is not None for row in on_test)
        assert all(row["test_gain"] is None for row in (whole, half) if not row["chosen"])
        # The old test data are the old data: the same texts, the same numbers.
        assert on_test[-1]["test_forgetting"] == pytest.approx(on_test[-1]["forgetting"], abs=1e-6)
    # Other test data are measured anew; a strength of many digits is found again.
    again = settings.model_copy(update={"test_data": str(grid.sft["old_data"]), "strengths": [1.0, 1 / 3]})
    other = next(row for row in compare.run(TASK, again, say=lambda _: None) if row["chosen"])
    assert other["test_gain"] == pytest.approx(-other["test_forgetting"], abs=1e-9)
    assert other["test_gain"] != next(row for row in rows if row["chosen"])["test_gain"]
    assert [row["strength"] for row in compare.run(TASK, again, say=lambda _: None)[:2]] == [1.0, 1 / 3]

    compare.run(TASK, settings, say=lambda _: None)
    record = json.loads((grid.output / "comparison.json").read_text())
    assert record["summary"]["against"] == "lora" and set(record["summary"]["contenders"]) == set(names)
    assert any("all trains" in words and "times lora's" in words for words in said)


@pytest.mark.slow
def test_parallel_runs_give_the_same(ran: Ran, tmp_path: Path) -> None:
    # Not equal: runs of their own may use another number of threads, which round sums differently.
    grid, alone = ran
    both = compare.run(TASK, grid.model_copy(update={"parallel": 2, "output": tmp_path / "both"}), say=lambda _: None)
    assert [row["new_after"] for row in both] == pytest.approx([row["new_after"] for row in alone], rel=1e-5)


def test_settings_go_to_the_methods_they_mean() -> None:
    settings = compare.load_compare(TASK, None, ["block_size=16", "eps=0.5", "lora_rank=3", "steps=10", "seeds=[1,2]"])
    made = grids.cells(TASK, settings, grids.rates_of(TASK, settings), settings.seeds, first=True)
    cells = {label: values for label, (values, _) in grids.methods_of(TASK, settings).items()}
    assert len(made) == 4 * 3 * 2
    assert (cells["oft"]["block_size"], cells["coft"]["eps"], cells["lora"]["lora_rank"]) == (16, 0.5, 3)
    assert "eps" not in cells["oft"] and "block_size" not in cells["full"] and "block_size" not in cells["lora"]
    rates = [cell.settings.learning_rate for cell in made if cell.method == "lora"]
    assert sorted(set(rates)) == [8e-4, 2e-3, 5e-3]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("metods=[oft]", r"unknown key 'metods'. Did you mean 'methods'\?"),
        ("stpes=3", r"unknown key 'stpes'. Did you mean 'steps'\?"),
        ("method=oft", r"method in a comparison. Write methods=\[...\] instead"),
        ("learning_rate=1", r"Write learning_rates=\[...\] instead"),
        ("resume=auto", "unknown key 'resume'"),
        ("methods=[ofd]", "methods"),
        ("methods=[]", r"methods=\[\] without variants leaves nothing to run. Name one"),
        ("variants={oft: {side: out}}", "a variant called 'oft'. Call it by a name that is no method's"),
        ("variants={a/b: {}}", "a variant called 'a/b'.*without a slash"),
        ("variants={two: {method: ofd}}", "variants.two.method='ofd'. Choose one of oft"),
        ("variants={two: {rotatoin: {}}}", "rotatoin"),
        ("variants={two: {method: full, eps: 1}}", "eps has no meaning for method=full"),
        ("strengths=[0]", "strengths"),
        ("variants={two: {output: there}}", "variants.two.output. Leave it out"),
        ("variants={two: {resume: never}}", "variants.two.resume. Leave it out"),
        ("variants={two: {learning_rate: 0.1}}", r"Write learning_rates=\[...\]"),
        ("variants={two: {learning_rates: 0.1}}", r"Write learning_rates=\[...\]"),
        ("variants={two: {learning_rates: [x]}}", r"Write learning_rates=\[...\]"),
        ("learning_rates={oft: [-1]}", "greater than 0"),
        ("against=lroa", "against=lroa. Choose one of oft, coft, lora, full"),
        ("test_data=text-world/new_test", "no old_test_data beside the other one. Name both, or neither"),
        ("steps=x", "command line: steps='x'. Needed: a valid integer"),
    ],
)
def test_faults_are_told_before_the_first_run(words: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        compare.load_compare(TASK, None, [words])


@pytest.mark.parametrize("beside", [{"modules_to_save": ["norm", "input_layernorm"]}, {"bias": "oft_only"}])
def test_what_is_trained_beside_a_rotation_has_the_strength_too(
    grid: CompareSFTSettings, beside: dict[str, Any]
) -> None:
    run = SFTSettings(**{**grid.sft, "rotation": beside, "learning_rate": 1e-2, "output": grid.output / "beside"})
    if "bias" in beside:
        grid.output.mkdir(parents=True)
        run.model = str(_with_biases(Path(grid.sft["model"]), grid.output / "model"))
    record = sft.run(run, lambda _: None, bar=False)
    found = measure(Again(run=run, strengths=[1.0, 1e-9], file="strengths.json"))
    assert found[1.0]["new"] < found[0.0]["new"] - 1e-3
    # Strength 0 is the base, and 1e-9 of the change is below the rounding of every weight.
    assert found[0.0]["new"] == pytest.approx(record.new_before, abs=1e-6)
    assert found[1e-9] == pytest.approx(found[0.0], abs=1e-6)


def test_the_base_of_several_runs_is_measured_once(grid: CompareSFTSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(model: Any, rows: Any) -> Any:
        asked.append(len(rows))
        return mean_loss(model, rows)

    runs = [SFTSettings(**{**grid.sft, "method": name, "output": grid.output / name}) for name in ("oft", "lora")]
    for run in runs:
        sft.run(run, lambda _: None, bar=False)
    alone = [measure(Again(run=run, strengths=[0.5], file="alone.json")) for run in runs]
    monkeypatch.setattr(strengths, "_BASES", {})
    monkeypatch.setattr(strengths, "mean_loss", counted)
    found = [measure(Again(run=run, strengths=[0.5], file="strengths.json")) for run in runs]
    assert found == alone
    # Two domains at the base and at one strength; then at one strength alone. Other tokens are another measurement.
    assert len(asked) == 4 + 2
    measure(Again(run=runs[1].model_copy(update={"eval_tokens": 40}), strengths=[0.5], file="fewer.json"))
    assert len(asked) == 6 + 4


def _with_biases(model: Path, home: Path) -> Path:
    """The tiny model with biases in its attention, drawn anew."""
    shutil.copytree(model, home)
    config = AutoConfig.from_pretrained(model, attention_bias=True)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(home)
    return home
