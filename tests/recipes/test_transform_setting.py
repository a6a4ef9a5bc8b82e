"""``transform`` in every recipe and comparison: the same settings whatever the name, and contradictions in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError

import orthotune
from orthotune import get_peft_model
from orthotune.experiments.grid import load_compare, methods_of
from orthotune.experiments.text_task import SFTTask
from orthotune.recipes import sft
from orthotune.recipes.image_job import adapter_settings
from orthotune.recipes.method_settings import Transform
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.setting_fields import all_fields
from orthotune.recipes.setting_help import listing
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.recipes.text_job import adapter_config
from orthotune.recipes.what_it_becomes import what_it_becomes
from orthotune.report.page import write_report
from orthotune.rotation.family_registry import FAMILY, PUBLISHED
from tests.support.tiny_text import make_model

NAMES = get_args(Transform)


def _model() -> Any:
    with torch.device("meta"):
        return make_model()


def test_the_choices_are_the_registry() -> None:
    assert set(NAMES) == {"blocks", *FAMILY, *PUBLISHED}
    shown = listing(RECIPES["dpo"], ["transform"])
    assert all(name in shown for name in NAMES)


def test_every_recipe_has_it() -> None:
    for recipe in RECIPES.values():
        names = {field.name for field in all_fields(f"orthotune.recipes.{recipe.settings}")}
        assert {"transform", "variant", "factors"} <= names


@pytest.mark.parametrize("name", NAMES)
def test_the_config_of_the_adapter_has_it(name: str) -> None:
    settings = SFTSettings(transform=name)
    config = adapter_config(settings, _model(), [], "CAUSAL_LM")
    assert config.transform == PUBLISHED.get(name, (name,))[0]
    assert (name in ("blocks", "oft")) == (settings.block_size == 32)


def test_lora_has_the_size_of_the_transform() -> None:
    hra = get_peft_model(_model(), adapter_config(SFTSettings(transform="hra", r=2), _model(), [], None))
    trained = sum(p.numel() for p in hra.parameters() if p.requires_grad)
    notes: list[str] = []
    adapter_config(SFTSettings(method="lora", transform="hra", r=2), _model(), notes, None)
    assert f"nearest to OFT's {trained:,} on the same layers" in notes[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"transform": "hra", "block_size": 32}, "block_size=32 with transform='reflections' needs r"),
        ({"transform": "reflection"}, "reflections"),
        ({"transform": "hra", "factors": 2}, "factors=2 with transform='reflections' needs a transform with stages"),
        ({"transform": "planes", "variant": "road_9"}, "variant='road_9'.*'angles', 'road_1'"),
        ({"variant": "road_1"}, "variant='road_1' with transform='blocks' needs a transform that has it"),
        ({"transform": "road", "rotation": {"side": "in"}}, "side='in' with transform='road', which means side='out'"),
        ({"transform": "psoft", "variant": "road_1"}, "variant='road_1' with transform='subspace'.*'psoft_lowrank'"),
        ({"transform": "boft", "rotation": {"scaled": True}}, "scaled=True with transform='butterfly'"),
        ({"transform": "boft", "block_rate": 0.5}, "block_rate=0.5 with transform='butterfly' has no meaning"),
        ({"transform": "boft", "rotation": {"transform": "hra"}}, "transform and rotation.transform are mutually"),
        (
            {"transform": "psoft", "rewind": "auto"},
            "rewind and transform=psoft are mutually exclusive: a rotation betw",
        ),
        ({"transform": "hra", "r": 3, "rewind": "kind"}, "rewind and transform=hra.*3 reflections"),
        ({"rotation": {"transform": "harr"}}, "rotation.transform='harr', which is not one of blocks"),
        ({"transform": "hra", "method": "coft"}, "transform has no meaning for method=coft"),
        ({"transform": "hra", "method": "full"}, "transform has no meaning for method=full"),
    ],
    ids=str,
)
def test_contradictions(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SFTSettings(**values)


def test_sizes_of_a_preset_are_those_of_blocks() -> None:
    settings = SFTSettings(transform="hra", preset="llama", model="m", data="d")
    assert (settings.block_size, settings.rotation, settings.max_length) == (None, {}, 2048)
    assert SFTSettings(transform="hra").record()["transform"] == "hra"
    assert SFTSettings(**SFTSettings(transform="hra", r=4).record()).r == 4
    assert "transform" not in SFTSettings().record()  # a run from before the setting existed can be resumed
    # The option that recipes had before goes on to work.
    assert SFTSettings(rotation={"transform": "boft"}).rotation_options == {"transform": "boft"}


def test_the_scale_of_a_published_transform_has_a_rate() -> None:
    """boft trains the scale of the rows; its rate is that of the rotation until another one is asked for."""
    assert SFTSettings(transform="boft").magnitude_factor == 1.0
    assert "magnitude_rate" not in SFTSettings(transform="boft").record()  # older runs are resumed
    asked = SFTSettings(transform="boft", magnitude_rate=3.0)
    assert asked.magnitude_factor == 3.0 and asked.record()["magnitude_rate"] == 3.0
    without = {"transform": "boft", "magnitude_rate": 3.0, "rotation": {"magnitude": False}}
    for values in (without, {"transform": "hra", "magnitude_rate": 3.0}):
        with pytest.raises(ValidationError, match="magnitude_rate has no meaning without rotation.magnitude"):
            SFTSettings(**values)
    assert SFTSettings(transform="boft", rewind="auto").rewind == "auto"  # stages are rewound as blocks


def test_images_have_it_and_files_of_blocks_are_refused() -> None:
    settings = adapter_settings(SubjectSettings(transform="butterfly", factors=3, block_size=8))
    assert dict(settings.rotation) == {"transform": "butterfly", "factors": 3} and settings.block_size == 8
    with pytest.raises(ValidationError, match="for=comfyui is about files of blocks"):
        SubjectSettings(transform="hra", made_for="comfyui")


def test_a_comparison_has_variants_of_it(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "block_size: 16\nmethods: [oft, lora]\nvariants:\n"
        "  hra: {transform: hra, r: 4, learning_rates: [0.01]}\n  boft: {transform: boft, block_size: 8}\n"
    )
    settings = load_compare(SFTTask(), tmp_path / "c.yaml", [])
    found = {name: values for name, (values, _) in methods_of(SFTTask(), settings).items()}
    assert found["oft"]["block_size"] == 16 and "block_size" not in found["hra"]
    assert (found["hra"]["r"], found["boft"]["block_size"], found["boft"]["transform"]) == (4, 8, "boft")


def test_the_formats_of_a_settings_file_are_those_of_its_transform(tmp_path: Path) -> None:
    for name, target in (("hra", "peft-hra"), ("road", "peft-road"), ("psoft", "peft-psoft"), ("boft", "peft-boft")):
        (tmp_path / "s.yaml").write_text(f"transform: {name}\n")
        found = what_it_becomes(tmp_path / "s.yaml")
        assert (found.conversions[target], found.conversions["kohya-oft"]) == ("lossless", "impossible")


#: a name of each transform, and its size in a model of width 32
RUNS: dict[str, dict[str, Any]] = {
    "hra": {"r": 4}, "boft": {"block_size": 8}, "planes": {"block_size": 8}, "goft": {"block_size": 16},
    "psoft": {"r": 4}, "ether+": {"block_size": 8},
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_has_a_report(name: str, model_path: Path, text_path: Path, old_path: Path, tmp_path: Path) -> None:
    settings = SFTSettings(
        model=str(model_path), data=str(text_path), old_data=str(old_path), transform=name, steps=2, batch_size=2,
        max_length=32, learning_rate=1e-2, sample_prompts=[], output=tmp_path / "run", **RUNS[name],
    )  # fmt: skip
    record = sft.run(settings, say=lambda _: None, bar=False)
    assert record.weights.orthogonality_error is not None
    facts = orthotune.inspect(tmp_path / "run" / "adapter")
    page = write_report(tmp_path / "run", adapter=facts).read_text(encoding="utf-8")
    assert "transform" in page and name in page.replace("&#43;", "+")
    assert all(row["layer"] in page for row in facts["layers"])
