"""Rewinding of finished runs: what is chosen, what is written, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from orthotune import PeftModel
from orthotune.cli.main import app
from orthotune.errors import OutputError, RecipeError
from orthotune.metrics.text_loss import mean_loss
from orthotune.recipes import rewind, sft
from orthotune.recipes.held_out import held_out_rows
from orthotune.recipes.rewind import RewindSettings
from orthotune.recipes.settings import SFTSettings
from orthotune.text.causal_model import load_model, load_tokenizer
from tests.support.tiny_text import texts, write_jsonl

QUIET: dict[str, Any] = {"say": lambda line: None}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, model_path: Path) -> dict[str, Path]:
    """A finished run of each method on a tiny model, a few steps at a high rate."""
    home = tmp_path_factory.mktemp("runs")
    data = {
        "data": write_jsonl(home / "new.jsonl", texts(40, "blue")),
        "eval_data": write_jsonl(home / "held-out.jsonl", texts(24, "blau")),
        "old_data": write_jsonl(home / "old.jsonl", [{"text": "ZQ#XJK"[n % 6 :] + "#QZKX" * 7} for n in range(24)]),
    }
    rates = {"oft": 6e-2, "lora": 5e-2, "full": 5e-3}
    for method, rate in rates.items():
        settings = SFTSettings(
            model=str(model_path), method=method, learning_rate=rate, steps=20, eval_every=20, max_length=64,
            output=home / method, **{key: str(path) for key, path in data.items()},
        )  # fmt: skip
        sft.run(settings, **QUIET, bar=False)
    return {method: home / method for method in rates}


@pytest.mark.parametrize("method", ["oft", "lora", "full"])
def test_what_is_written_is_what_was_measured(runs: dict[str, Path], method: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = RewindSettings(run=runs[method], by="projection", tokens=1500, steps=4, step_tokens=300, output=out)
    found = rewind.run(settings, **QUIET)
    assert len(found.strengths) > 1 and all(0 < t <= 1.3 for t in found.strengths.values())
    assert json.loads((out / "rewind.json").read_text()) == found.model_dump(mode="json")
    assert (out / "rewind.png").is_file()
    trained = SFTSettings(**json.loads((runs[method] / "run.json").read_text())["settings"])
    base = load_model(trained.model, torch.float32)
    rows = held_out_rows(base, load_tokenizer(trained.model), trained.model_copy(update={"eval_tokens": 1500}))
    half = {domain: rows[domain][len(rows[domain]) // 2 :] for domain in ("new", "old")}
    before = {domain: mean_loss(base, own).nats for domain, own in half.items()}
    if method == "full":
        model = load_model(str(out / "model"), torch.float32)
    else:
        model = PeftModel.from_pretrained(base, out / "adapter")
    after = {domain: mean_loss(model, own).nats for domain, own in half.items()}
    # The adapter is stored in float32, and was measured from powers in float64.
    assert found.rows["chosen"]["gain"] == pytest.approx(before["new"] - after["new"], abs=2e-5)
    assert found.rows["chosen"]["forgetting"] == pytest.approx(after["old"] - before["old"], abs=2e-5)


def test_a_series_is_rewound_as_the_nearest_rotation(runs: dict[str, Path], tmp_path: Path) -> None:
    trained = SFTSettings(**json.loads((runs["oft"] / "run.json").read_text())["settings"])
    series = {"use_cayley_neumann": True}
    changed = {"rotation": series, "steps": 4, "learning_rate": 5e-3, "output": tmp_path / "run"}
    trained = trained.model_copy(update=changed)
    sft.run(SFTSettings(**trained.record()), **QUIET, bar=False)
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["use_cayley_neumann"]
    rewind.run(RewindSettings(run=tmp_path / "run", tokens=900, output=tmp_path / "out"), **QUIET)
    # One adapter, and nothing of what it was made from.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["adapter", "rewind.json", "rewind.png"]
    assert not json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())["use_cayley_neumann"]


def test_a_limit_of_forgetting_holds_on_the_texts_it_was_chosen_by(runs: dict[str, Path], tmp_path: Path) -> None:
    without = rewind.run(RewindSettings(run=runs["oft"], tokens=1500, output=tmp_path / "a"), **QUIET)
    limit = sorted(point["forgetting"] for point in without.curve)[len(without.curve) // 2]
    found = rewind.run(RewindSettings(run=runs["oft"], tokens=1500, forgetting=limit, output=tmp_path / "b"), **QUIET)
    at = next(point for point in found.curve if point["strength"] == found.strengths["all"])
    assert at["forgetting"] <= limit < max(point["forgetting"] for point in found.curve)
    none = rewind.run(RewindSettings(run=runs["oft"], tokens=1500, forgetting=-9, output=tmp_path / "c"), **QUIET)
    assert none.strengths == {"all": 0.0} and any("the base is left" in note for note in none.notes)


def test_texts_that_the_base_writes(runs: dict[str, Path], tmp_path: Path) -> None:
    settings = RewindSettings(run=runs["oft"], old="generated", tokens=600, output=tmp_path / "out")
    found = rewind.run(settings, **QUIET)
    assert (tmp_path / "out" / "old-texts.jsonl").is_file() and "the base wrote" in found.notes[0]
    # Texts of the base itself are what it predicts best.
    assert found.rows["as trained"]["forgetting"] > 0


def test_old_texts_that_are_new_texts_are_told(runs: dict[str, Path], tmp_path: Path) -> None:
    settings = RewindSettings(
        run=runs["oft"], old=str(runs["oft"].parent / "held-out.jsonl"), tokens=900, output=tmp_path / "out"
    )
    found = rewind.run(settings, **QUIET)
    assert found.overlap == 1.0 and any("100% of the old rows" in note for note in found.notes)


def test_few_texts_are_told_or_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    few = write_jsonl(tmp_path / "few.jsonl", [{"text": "three words here"}])
    with pytest.raises(RecipeError, match=r"source domain. Found: 1 rows. Needed: at least 4.*old=FILE"):
        rewind.run(RewindSettings(run=runs["oft"], old=str(few), output=tmp_path / "out"), **QUIET)
    assert not (tmp_path / "out").exists()
    write_jsonl(few, [{"text": f"some words {n}"} for n in range(6)])
    settings = RewindSettings(run=runs["oft"], old=str(few), new=str(few), output=tmp_path / "out")
    found = rewind.run(settings, **QUIET)
    assert found.forgetting_saved[1] > 0


def test_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no finished run"):
        rewind.run(RewindSettings(run=tmp_path), **QUIET)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="a folder that is not empty"):
        rewind.run(RewindSettings(run=runs["oft"], output=tmp_path / "out"), **QUIET)
    with pytest.raises(RecipeError, match="old=generated"):
        rewind.run(RewindSettings(run=runs["full"], old="generated", output=tmp_path / "new"), **QUIET)


def test_the_verb(runs: dict[str, Path], tmp_path: Path) -> None:
    words = ["rewind", str(runs["oft"]), "tokens=900", "--by", "kind", "steps=3", "step_tokens=200", "-o"]
    found = CliRunner().invoke(app, [*words, str(tmp_path / "out"), "--json"])
    assert found.exit_code == 0, found.stderr
    assert set(json.loads(found.stdout)["strengths"]) == {"attention", "mlp"}
    shown = CliRunner().invoke(app, [*words, str(tmp_path / "out"), "--overwrite"])
    assert shown.exit_code == 0 and "as trained" in shown.stdout and "given up" in shown.stdout
    for wrong, message in (
        (["rewind", str(tmp_path / "none")], "no finished run"),
        (["rewind", str(runs["oft"]), "token=5"], "Did you mean 'tokens'?"),
        (["rewind", str(runs["oft"]), "--by", "colour"], "by='colour'"),
        (["rewind", str(runs["oft"]), "--weight", "-1"], "weight=-1"),
        (["rewind", str(runs["oft"]), "--old", "no/such.jsonl", "-o", str(tmp_path / "x")], "no such file"),
    ):
        failed = CliRunner().invoke(app, wrong)
        assert failed.exit_code == 2 and message in failed.stderr and "Traceback" not in failed.stderr, failed.stderr
