"""A comparison on the image world, made small: few pictures, few steps, real runs."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.errors import OrthotuneError, RecipeError
from orthotune.experiments import compare, grid
from orthotune.experiments.image_frontier import means
from orthotune.experiments.image_strength import finished
from orthotune.experiments.image_tasks import (
    CompareControlSettings,
    CompareSubjectSettings,
    ControlTask,
    ImageTask,
    SubjectTask,
)
from orthotune.experiments.rates import choose, seed_means
from orthotune.image.adapter.adapters import add_adapter, trained
from orthotune.image.adapter.saved_adapter import save_adapter
from orthotune.image.adapter.settings import AdapterSettings
from orthotune.recipes import subject
from orthotune.worlds import image
from orthotune.worlds.image_scores import SubjectScores, base_family

pytestmark = pytest.mark.skipif(not image.CARD.is_file(), reason="the image world is not in this tree")
QUICK = {
    "steps": 2, "sample_prompts": ["a sks digit"], "class_count": 1, "class_steps": 1, "batch_size": 1,
    "target_modules": ["attn2.to_q"],
    "sample_steps": 1, "sample_seeds": [0],
}  # fmt: skip

RANKING = ("validation_score", "validation_learned")
SUBJECT = SubjectTask()


def cells(settings: CompareSubjectSettings, seeds: list[int]) -> list[grid.Cell]:
    return grid.cells(SUBJECT, settings, grid.rates_of(SUBJECT, settings), seeds, first=True)


def quick(split: Any) -> SubjectScores:
    return SubjectScores(split, count=3, steps=2)


class SmallTask(SubjectTask):
    """The subject's task with fewer images; what is scored on the test split is noted."""

    def __init__(self) -> None:
        self.on_test: list[str] = []

    def job(self, settings: Any) -> Any:
        return dataclasses.replace(subject.job(settings), scores=[quick("validation")])

    def scores_at(self, run: Path, split: Any, strength: float) -> dict[str, float]:
        if split == "test" and strength == 1:
            self.on_test.append(run.name)
        return quick(split)(1, finished(run, strength))

    def base_scores(self, split: Any) -> dict[str, float]:
        return quick(split)(0, base_family())


@pytest.mark.parametrize("task", [SUBJECT, ControlTask()], ids=["subject", "control"])
def test_a_block_size_that_does_not_divide_is_refused_before_the_first_run(task: ImageTask, tmp_path: Path) -> None:
    variants = {name: {"method": "oft", "block_size": size} for name, size in (("first", 8), ("odd", 32))}
    runs = {"steps": 1, "batch_size": 1} | ({"class_count": 1, "class_steps": 1} if task is SUBJECT else {})
    asked = task.grid(methods=[], variants=variants, against="first", output=tmp_path / "grid", runs=runs)
    with pytest.raises(OrthotuneError, match="block_size=32 does not divide the 112 features of layer"):
        compare.run(task, asked, say=lambda _: None)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_a_comparison_is_run_chosen_tested_and_shown(tmp_path: Path) -> None:
    task = SmallTask()
    small = task.on_test
    settings = CompareSubjectSettings(
        methods=["oft+magnitude"], seeds=[0, 1], output=tmp_path / "grid", runs=QUICK,
        learning_rates={"oft+magnitude": [1e-3, 1e-2]}, strengths=[1.0, 0.5],
    )  # fmt: skip
    rows = compare.run(task, settings, say=lambda _: None)
    # Two rates with the first seed, then the best of them with the second one, and the base.
    assert len(rows) == 2 + 1 + 1 and len(small) == 2
    by_run = {row["run"]: row for row in rows}
    assert by_run["none"]["trainable_parameters"] == 0 and by_run["none"]["test_drift"] < 1e-6
    chosen = [row for row in rows if row["chosen"] and row["method"] == "oft+magnitude"]
    assert [row["seed"] for row in chosen] == [0, 1] and len({row["learning_rate"] for row in chosen}) == 1
    assert sorted(small) == sorted(row["run"] for row in rows if row["chosen"] and row["method"] != "none")
    # Rotations with a scale for each neuron: energy is of directions, which scales leave alone.
    assert all(row["orthogonality_error"] < 5e-6 and row["energy_change"] < 1e-5 for row in chosen)
    home = settings.output
    record = json.loads((home / "comparison.json").read_text())
    assert record["recipe"] == "subject" and record["runs"] == rows
    assert all(record["axes"][name] in rows[0] for name in ("learned", "kept"))
    mean = sum(row["test_drift"] for row in chosen) / 2
    assert record["summary"]["oft+magnitude"]["test_drift"][0] == pytest.approx(mean)
    with (home / "comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["run"] for line in lines] == [row["run"] for row in rows]
    page = (home / "report.html").read_text()
    pictures = ("frontier", "fidelity", "convergence", "change")
    assert all((home / f"{name}.png").is_file() and f'alt="{name}"' in page for name in pictures)
    # With the slashes: the letters alone may stand in a picture's base64.
    assert "OFT + magnitude" in page and "://" not in page

    with (home / "points.csv").open() as file:
        points = list(csv.DictReader(file))
    assert [(point["seed"], point["strength"]) for point in points] == [
        (seed, strength) for seed in "01" for strength in ("1.0", "0.5")
    ]
    base = by_run["none"]
    for point, row in zip(points[::2], chosen, strict=True):
        assert float(point["gain"]) == row["validation_prompt_fidelity"] - base["validation_prompt_fidelity"]
        assert float(point["forgetting"]) == row["validation_drift"]
    assert all(bool(point["test_gain"]) == (point["chosen"] == "True") for point in points)
    assert (home / "equal-gain.json").is_file() and (home / "equal-gain.png").is_file()

    small.clear()
    assert compare.run(task, settings, say=lambda _: None) == rows
    assert not small, "the test split was scored again"


def test_what_full_finetuning_left_is_loaded(tmp_path: Path) -> None:
    family = base_family()
    with torch.no_grad():
        family.denoiser.conv_in.weight.mul_(0.9)
    family.pipeline.save_pretrained(tmp_path / "model")
    pictures = [one.generate(["a red two"], [0], steps=1) for one in (family, finished(tmp_path))]
    assert torch.equal(*pictures)


def test_full_finetuning_at_half_strength_is_half_way(tmp_path: Path) -> None:
    family = base_family()
    before = family.denoiser.conv_in.weight.detach().clone()
    with torch.no_grad():
        family.denoiser.conv_in.weight.mul_(0.5)
    family.pipeline.save_pretrained(tmp_path / "model")
    halved = finished(tmp_path, 0.5)
    # A sum of two halves rounds once.
    torch.testing.assert_close(halved.denoiser.conv_in.weight, 0.75 * before, rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_an_adapter_at_next_to_no_strength_draws_as_the_base_does(method: str, tmp_path: Path) -> None:
    family = base_family()
    rank = 2 if method == "lora" else None
    add_adapter(family, AdapterSettings(method=method, targets=["attn2.to_q", "conv1"], lora_rank=rank))
    with torch.no_grad():
        for parameter in trained(family).values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_adapter(family, tmp_path / "adapter")
    of = [base_family(), finished(tmp_path), finished(tmp_path, 1e-9)]
    base, whole, off = (one.generate(["a red two"], [0], steps=1).float() for one in of)
    # Rounding of the adapter's own additions: one grey level of 255 at most.
    assert (whole - base).abs().max() > 1 and (off - base).abs().max() <= 1


def test_runs_share_class_pictures_and_differ_by_method() -> None:
    settings = CompareSubjectSettings(runs={"block_size": 8})
    assert settings.output == Path("runs/compare-subject")
    made = [(method, one) for _, method, one in cells(settings, [4])]
    assert len(made) == 5 * 5
    of = {method: [one for name, one in made if name == method] for method in settings.methods}
    assert of["oft+magnitude"][0].rotation == {"magnitude": True} and of["oft+magnitude"][0].method == "oft"
    assert not of["oft"][0].rotation and of["coft"][0].eps == 1
    assert {one.class_images for _, one in made} == {Path("runs/compare-subject/class-images-seed4")}
    rates = [one.learning_rate for one in of["oft"]]
    assert max(rates) / min(rates) == pytest.approx(16) and len(rates) == 5
    beside = CompareSubjectSettings(parallel=2)
    assert all(one.class_images is None for *_, one in grid.cells(SUBJECT, beside, {"oft": [1e-3]}, [0], first=True))
    assert "block_size" not in grid.methods_of(SUBJECT, settings)["full"][0]


def _row(method: str, rate: float, seed: int, score: float, learned: float = 0.0) -> dict[str, Any]:
    return {"method": method, "learning_rate": rate, "seed": seed, "validation_score": score,
            "validation_learned": learned, "chosen": True}  # fmt: skip


def test_the_rate_is_chosen_by_the_mean_score() -> None:
    rows = [_row("oft", 1.0, 0, 0.9), _row("oft", 1.0, 1, 0.1), _row("oft", 2.0, 0, 0.6), _row("oft", 2.0, 1, 0.6)]
    assert choose(rows, RANKING) == {"oft": 2.0}
    # Nothing learned at all: what came closest, then the lower rate.
    assert choose([_row("oft", 1.0, 0, 0.0, 0.1), _row("oft", 2.0, 0, 0.0, 0.2)], RANKING) == {"oft": 2.0}
    assert choose([_row("oft", 2.0, 0, 0.0), _row("oft", 1.0, 0, 0.0)], RANKING) == {"oft": 1.0}
    # sqrt(((0.9 - 0.5)^2 + (0.1 - 0.5)^2) / 1)
    assert seed_means(rows[:2])["oft"]["validation_score"] == pytest.approx((0.5, 0.5657), abs=1e-4)
    assert means(rows, "validation_score", "validation_learned")["oft"] == [(1.0, 0.5, 0.0), (2.0, 0.6, 0.0)]


def test_variants_run_beside_the_methods_with_settings_of_their_own() -> None:
    said = {"prior_target": "base", "learning_rates": [0.002]}
    settings = CompareSubjectSettings(methods=["lora"], variants={"keep": said}, against="keep")
    made = [(name, label, one) for name, label, one in cells(settings, [4]) if label == "keep"]
    assert [name for name, *_ in made] == ["keep-lr0.002-seed4"]
    one = made[0][2]
    assert (one.method, one.prior_target, one.learning_rate) == ("oft", "base", 0.002)
    # Said of all, and of meaning for those with magnitudes alone.
    rated = CompareControlSettings(methods=["oft", "oft+magnitude"], runs={"magnitude_rate": 2})
    assert {name: base.get("magnitude_rate") for name, (base, _) in grid.methods_of(ControlTask(), rated).items()} == {
        "oft": None, "oft+magnitude": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("metods=[oft]", r"Did you mean 'methods'\?"),
        ("stpes=3", r"Did you mean 'steps'\?"),
        ("learning_rate=1", r"Write learning_rates=\[...\] instead"),
        ("methods=[boft]", "methods"),
        ("methods=[]", "without variants leaves nothing to run"),
        ("variants={lora: {}}", "a variant called 'lora'"),
        ("variants={own: {seed: 3}}", "variants.own.seed"),
        ("variants={own: {learning_rates: 1}}", "the learning rate of variants.own"),
        ("variants={own: {method: boft}}", "variants.own.method='boft'"),
        ("variants={own: {metod: oft}}", "Did you mean 'method'"),
        ("against=own", "against=own"),
        ("steps=x", "steps='x'"),
    ],
)
def test_faults_are_told_before_the_first_run(words: str, message: str) -> None:
    for task in (SUBJECT, ControlTask()):
        with pytest.raises(RecipeError, match=message):
            compare.load_compare(task, None, [words])
