"""Magnitudes beside rotations learn at a rate of their own, in every recipe, and nothing else does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from orthotune.errors import RecipeError
from orthotune.files.json_file import write_json
from orthotune.files.run_adapter import STARTED
from orthotune.image.loop import optimizer as optimizers
from orthotune.image.loop.optimizer import make_optimizer, rate, set_rate
from orthotune.image.loop.options import LoopOptions
from orthotune.recipes import magnitude, sft
from orthotune.recipes.control import ControlSettings
from orthotune.recipes.load import load_settings
from orthotune.recipes.magnitude import load_magnitude
from orthotune.recipes.method_settings import MAGNITUDE_RATE
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.recipes.text_to_image import TextToImageSettings
from orthotune.runs.learning_rates import RateFactors

RATE = 1e-3
SIZES = ("block_size", "block_rate")
WITH = {"rotation": {"magnitude": True}}


@pytest.fixture
def job(model_path: Path, text_path: Path, old_path: Path, tmp_path: Path) -> dict[str, Any]:
    data = {"model": str(model_path), "data": str(text_path), "old_data": str(old_path)}
    return data | {"max_length": 32, "block_size": 16, "block_rate": 0, "batch_size": 2, "learning_rate": RATE,
                   "warmup": 0, "schedule": "constant", "steps": 1, "output": tmp_path / "run"}  # fmt: skip


def trained(job: dict[str, Any], **said: Any) -> dict[str, torch.Tensor]:
    settings = SFTSettings(**job | said)
    sft.run(settings, lambda _: None, bar=False)
    return load_file(settings.output / "adapter" / "adapter_model.safetensors")


def moved(adapter: dict[str, torch.Tensor]) -> tuple[float, float]:
    """How far the first step took rotations and magnitudes: Adam's is as long as the rate for every number."""
    away = {name: (value - (1 if "magnitude" in name else 0)).abs().max() for name, value in adapter.items()}
    return tuple(float(max(v for n, v in away.items() if ("magnitude" in n) is scale)) for scale in (False, True))  # type: ignore[return-value]


@pytest.mark.parametrize(("said", "factor"), [({}, MAGNITUDE_RATE), ({"magnitude_rate": 3.0}, 3.0)])
def test_the_first_step_of_a_language_model(job: dict[str, Any], said: dict[str, Any], factor: float) -> None:
    turned, scaled = moved(trained(job, **WITH, **said))
    # 1e-4: Adam's 1e-8 beside gradients of this size, and the rounding of numbers near 1.
    assert turned == pytest.approx(RATE, rel=1e-4)
    assert scaled == pytest.approx(factor * RATE, rel=1e-3)


def test_the_first_step_of_an_image_model() -> None:
    names = ("unet.to_q.oft_R.default.weight", "unet.to_q.oft_magnitude.default.weight", "hint_encoder.head.weight")
    weights = {name: torch.nn.Parameter(torch.zeros(2)) for name in names}
    options = LoopOptions(RATE, steps=2, rate_factors=RateFactors(5.0), hint_learning_rate=2 * RATE)
    optimizer = make_optimizer(weights, options)
    for weight in weights.values():
        weight.grad = torch.tensor([1.0, -2.0])
    set_rate(optimizer, rate(0, options))
    optimizer.step()
    steps = [float(weight.abs().max()) for weight in weights.values()]
    assert steps == pytest.approx([RATE, 5 * RATE, 2 * RATE], rel=1e-6)


def test_a_run_that_was_cut_off_goes_on_with_both_rates(job: dict[str, Any], tmp_path: Path) -> None:
    job |= {"steps": 4, "save_every": 2, "schedule": "cosine", **WITH}
    whole = trained(job, output=tmp_path / "whole")
    trained(job, output=tmp_path / "cut")
    for name in ("run.json", "adapter", "checkpoints/checkpoint-4"):
        path = tmp_path / "cut" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = trained(job, output=tmp_path / "cut", resume="auto")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)


def test_magnitudes_that_are_fitted_alone_learn_at_the_rate_itself(job: dict[str, Any], tmp_path: Path) -> None:
    trained(job)
    words = [f"adapter={job['output']}", f"output={tmp_path / 'fit'}", "steps=1", f"learning_rate={RATE}", "warmup=0"]
    magnitude.run(load_magnitude(None, words), lambda _: None, bar=False)
    fitted = load_file(tmp_path / "fit" / "adapter" / "adapter_model.safetensors")
    assert moved(fitted)[1] == pytest.approx(RATE, rel=1e-3)


@pytest.mark.parametrize("preset", [None, "text-world", "retain"])
def test_a_fit_takes_no_rate_from_a_preset_or_from_the_run_before(
    job: dict[str, Any], tmp_path: Path, preset: str | None
) -> None:
    home = tmp_path / "run"
    settings = SFTSettings(**job | {"rotation": {"magnitude": True}}).record() | {"preset": preset, "keep": 0}
    (home / "adapter").mkdir(parents=True)
    (home / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT"}))
    save_file({"x": torch.zeros(1)}, home / "adapter" / "adapter_model.safetensors")
    run = {"recipe": "sft", "method": "oft", "settings": settings, "steps": 2}
    (home / "run.json").write_text(json.dumps(run))
    assert load_magnitude(None, [f"adapter={home}"]).magnitude_factor == 1
    assert load_magnitude(None, [f"adapter={home}", "model=text-world"]).magnitude_factor == 1


def test_the_record_of_a_run_without_them_says_nothing() -> None:
    plain = SFTSettings(rotation={})
    assert "magnitude_rate" not in plain.record() and plain.magnitude_factor == 1
    by_layer = SFTSettings(rotation={"layer_settings": {"model.layers.0.mlp.up_proj": {"magnitude": True}}})
    assert by_layer.magnitude_factor == MAGNITUDE_RATE == SFTSettings().magnitude_factor
    assert (
        SubjectSettings(**WITH).record()["magnitude_rate"] == MAGNITUDE_RATE == SubjectSettings(**WITH).magnitude_factor
    )
    for factor in (1.0, 2.0, MAGNITUDE_RATE):
        again = SFTSettings(**WITH, magnitude_rate=factor).record()
        assert SFTSettings(**again).record() == again and again["magnitude_rate"] == factor


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"rotation": {}, "magnitude_rate": 2},
            "magnitude_rate has no meaning without rotation.magnitude. Add rotation.magnitude=true",
        ),
        ({"method": "lora", "magnitude_rate": 2}, "magnitude_rate has no meaning for method=lora"),
        ({**WITH, "magnitude_rate": 0}, "greater than 0"),
    ],
)
def test_contradictions(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SFTSettings(**values)


@pytest.mark.parametrize(("exponent", "factor"), [(0.0, 1.0), (0.5, 2.0), (1.0, 4.0)])
def test_blocks_of_another_size_learn_at_the_rate_of_their_size(
    job: dict[str, Any], exponent: float, factor: float
) -> None:
    job |= {"block_size": 8, "block_rate": exponent}
    rotated, _ = moved(trained(job) | {"magnitude": torch.ones(1)})
    assert rotated == pytest.approx(factor * RATE, rel=1e-3)


def test_sizes_differ_within_one_model() -> None:
    names = {"a.oft_R.default.weight": 8 * 7 // 2, "b.oft_R.default.weight": 32 * 31 // 2, "b.lora_A.weight": 28}
    weights = {name: torch.nn.Parameter(torch.zeros(1, count)) for name, count in names.items()}
    factors = RateFactors(magnitude=3.0, block_exponent=0.5)
    options = LoopOptions(RATE, steps=2, rate_factors=factors)
    optimizer = make_optimizer(weights, options)
    for weight in weights.values():
        weight.grad = torch.ones_like(weight)
    set_rate(optimizer, rate(0, options))
    optimizer.step()
    steps = [float(weight.abs().max()) for weight in weights.values()]
    assert steps == pytest.approx([2 * RATE, RATE, RATE], rel=1e-6)


def test_records_from_before_have_no_such_key(job: dict[str, Any]) -> None:
    plain = {key: value for key, value in job.items() if key not in SIZES}
    other = plain | {"block_size": 8}
    assert "block_rate" not in SFTSettings(**plain).record()
    assert "block_rate" not in SFTSettings(**other, block_rate=0).record()
    assert SFTSettings(**other, block_rate=0.25).record()["block_rate"] == 0.25
    assert SFTSettings(**other).record()["block_rate"] == 1.0
    with pytest.raises(ValidationError, match="block_rate has no meaning for method=lora"):
        SFTSettings(**plain | {"block_rate": 0.5, "method": "lora"})


@pytest.mark.parametrize(
    "sizes",
    [
        {"block_size": 8}, {"r": 4}, {"rotation": {"block_size_pattern": {"q_proj": 8}}},
        {"rotation": {"block_size_fallback": "nearest"}},
    ],
)  # fmt: skip
def test_one_rate_fits_every_size_unless_another_exponent_is_asked_for(job: dict[str, Any], sizes: dict) -> None:
    settings = SFTSettings(**{key: value for key, value in job.items() if key not in SIZES} | sizes)
    assert settings.rate_factors.block_exponent == 1.0
    assert settings.record()["block_rate"] == 1.0


@pytest.mark.parametrize("recipe", [SubjectSettings, ControlSettings, TextToImageSettings])
def test_blocks_of_image_models_have_the_same_exponent(recipe: Any) -> None:
    # Of a model that is not the built-in one, whose presets have rates of their own size.
    images = {"instance_images": "x", "instance_prompt": "a sks cat"} if recipe is SubjectSettings else {"data": "x"}
    given: Any = {"model": "some/model", **images}
    settings = recipe(**given, method="oft", block_size=8)
    assert settings.rate_factors.block_exponent == 1.0
    assert settings.record()["block_rate"] == 1.0
    assert recipe(**given, method="oft", block_size=8, block_rate=0.5).record()["block_rate"] == 0.5
    assert "block_rate" not in recipe(**given, method="oft", block_size=32).record()


@pytest.mark.parametrize("method", ["oft", "lora"])
@pytest.mark.parametrize("fields", [{"transform": "butterfly"}, {"transform": "hra", "r": 4}])
def test_other_transforms_are_not_blocks(job: dict[str, Any], method: str, fields: dict[str, Any]) -> None:
    settings = SFTSettings(**{key: value for key, value in job.items() if key not in SIZES} | fields, method=method)
    assert settings.rate_factors.block_exponent == 0.0


def test_a_run_from_before_goes_on_at_its_rate(job: dict[str, Any], tmp_path: Path) -> None:
    """Records without the setting are of runs whose blocks all learned at the rate that was written."""
    output = tmp_path / "before"
    given = [f"output={output}", "block_size=8", "resume=auto", "model=text-world", "steps=4"]
    record = load_settings(SFTSettings, None, [*given, "block_rate=0"]).record()
    assert "block_rate" not in record
    output.mkdir()
    write_json(output / STARTED, record)
    assert load_settings(SFTSettings, None, given).rate_factors.block_exponent == 0.0
    write_json(output / STARTED, load_settings(SFTSettings, None, [f"output={tmp_path / 'now'}", *given[1:]]).record())
    assert load_settings(SFTSettings, None, given).rate_factors.block_exponent == 1.0
    # The default was 0.5 for a time, and records of then say so.
    write_json(output / STARTED, record | {"block_rate": 0.5})
    assert load_settings(SFTSettings, None, given).rate_factors.block_exponent == 0.5


def test_an_estimated_rate_needs_no_factor_of_all_parameters() -> None:
    weights = {f"{name}.oft_R.default.weight": torch.nn.Parameter(torch.zeros(1, 28)) for name in "ab"}
    options = LoopOptions(RATE, steps=2, rate_factors=RateFactors(block_exponent=0.5), optimizer="prodigy")
    groups = optimizers.one_rate(optimizers._groups(weights, options))
    assert [group["factor"] for group in groups] == [1.0]
    mixed = weights | {"c.oft_R.default.weight": torch.nn.Parameter(torch.zeros(1, 32 * 31 // 2))}
    with pytest.raises(RecipeError, match="block_rate=0"):
        optimizers.one_rate(optimizers._groups(mixed, options))


def test_a_run_and_its_plan_say_what_learns_at_another_rate(job: dict[str, Any]) -> None:
    said: list[str] = []
    settings = SFTSettings(**job | WITH | {"block_rate": 0.5})
    sft.run(settings, said.append, bar=False)
    note = "Blocks of 16 learn at 0.00141, 1.41 times learning_rate (block_rate=0.5), "
    note += "magnitudes learn at 0.005, 5 times learning_rate (magnitude_rate=5)."
    assert note in "\n".join(said).splitlines()
    assert f"rates       {note}" in sft.plan(settings)


@pytest.mark.parametrize("method", ["oft", "lora", "full"])
def test_nothing_is_said_where_everything_learns_at_the_rate_of_the_run(job: dict[str, Any], method: str) -> None:
    given = job if method == "oft" else {key: value for key, value in job.items() if key not in SIZES}
    assert not [line for line in sft.plan(SFTSettings(**given, method=method)) if line.startswith("rates")]
