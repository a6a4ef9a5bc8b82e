"""The model of a GPU's cost: what is counted follows from shapes, and the verb says that nothing was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gpu_run import cells, known, main
from harness.cells import SELECTIONS, Cell
from harness.predict import GPUS, MODELS, cost, frozen, predict, predict_cells, predicted_ratio
from orthotune.cli.main import app
from orthotune.errors import OrthotuneError

RATIOS = {(row.model, row.mode, row.contender): row.ratio for row in predict("a100")}


def test_the_frozen_model_does_the_products_of_its_weights() -> None:
    found = cost(frozen(MODELS["Llama-3.1-8B"], train=False), GPUS["h100"])
    weights = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    attention = 32 * 4 * 2048**2 * 4096 / 2
    assert found.operations == pytest.approx(2 * 2048 * weights + attention)
    # The backward to the input doubles the products; attention's is two and a half times its forward.
    both = cost(frozen(MODELS["Llama-3.1-8B"], train=True), GPUS["h100"])
    assert both.operations == pytest.approx(4 * 2048 * weights + 3.5 * attention)


@pytest.mark.parametrize("model", MODELS)
def test_every_contender_costs_more_than_the_frozen_model_and_large_blocks_more_than_small_ones(model: str) -> None:
    small, middle, large = (RATIOS[model, "train", f"orthotune b={block}"] for block in (32, 64, 128))
    assert 1 < small < middle < large
    assert 1 < RATIOS[model, "train", "lora_fused"] < RATIOS[model, "train", "lora"]


def test_a_card_with_published_numbers_says_where_they_are_published() -> None:
    assert all(gpu.source and gpu.bandwidth < gpu.float32 < gpu.products for gpu in GPUS.values())
    with pytest.raises(OrthotuneError, match="h100"):
        predict("gtx")


def test_a_cell_that_is_measured_has_a_prediction() -> None:
    for cell in cells():
        assert predicted_ratio(cell, "orthotune", GPUS["h100"]) > 1
        assert predicted_ratio(cell, "peft_oft", GPUS["h100"]) is None
    assert known("NVIDIA H100 80GB HBM3") is GPUS["h100"] and known("Quadro") is None


def test_the_verb_calls_a_prediction_one() -> None:
    said = CliRunner().invoke(app, ["bench", "--predict", "4090"])
    assert said.exit_code == 0 and "PREDICTED for RTX 4090, not measured" in " ".join(said.output.split())
    rows = json.loads(CliRunner().invoke(app, ["bench", "--predict", "4090", "--json"]).output)
    assert {row["model"] for row in rows} == set(MODELS)


def test_a_selection_is_predicted_cell_by_cell() -> None:
    rows = json.loads(CliRunner().invoke(app, ["bench", "targets", "--predict", "h100", "--json"]).output)
    assert {row["model"] for row in rows} == {cell.label for cell in SELECTIONS["targets"]}
    assert {row["mode"] for row in rows} == {"train", "decode"}
    # A card is no part of a cell: without a selection the models of the page are predicted.
    assert not {row["model"] for row in rows} & set(MODELS)


def test_evaluation_is_predicted_and_float32_and_unets_are_not() -> None:
    cell = Cell(mode="eval")
    forward, step = predicted_ratio(cell, "orthotune", GPUS["h100"]), predicted_ratio(Cell(), "orthotune", GPUS["h100"])
    assert 1 < forward < step
    assert predicted_ratio(replace(cell, dtype="float32"), "orthotune", GPUS["h100"]) is None
    labels = {row.model for row in predict_cells("h100", SELECTIONS["grid"])}
    assert labels == {cell.label for cell in SELECTIONS["grid"] if cell.dtype == "bfloat16"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "unet", "--predict", "h100"], "only UNets, or only models in float32"),
        (["bench", "adapters", "--predict", "h100"], "--predict has no prediction for `orthotune bench adapters`"),
        (["bench", "target", "--predict", "h100"], "Did you mean targets?"),
        (["bench", "targets", "--predict", "gtx"], "a card without published numbers here"),
    ],
)
def test_a_selection_without_a_prediction_is_refused(words: list[str], said: str) -> None:
    found = CliRunner().invoke(app, words)
    shown = " ".join((found.output + str(found.exception or "")).replace("│", " ").split())
    assert found.exit_code and said in shown


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_measurement_refuses_in_words(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_run.py", "--out", str(tmp_path)])
    assert main() == 2
    assert "no GPU here, and nothing was measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
