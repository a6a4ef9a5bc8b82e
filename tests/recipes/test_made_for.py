"""for=TOOL in image recipes gives files that the tool loads, and identify says so before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orthotune.cli.identify import lines_before
from orthotune.errors import RecipeError
from orthotune.image.adapter.adapters import add_adapter
from orthotune.image.adapter.saved_adapter import save_adapter
from orthotune.image.families.registry import open_family
from orthotune.operations.identify import identify
from orthotune.recipes import preset
from orthotune.recipes.image_job import adapter_settings
from orthotune.recipes.image_settings import MADE_FOR
from orthotune.recipes.load import load_settings
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.subject_settings import SubjectSettings
from orthotune.recipes.what_it_becomes import is_settings, what_it_becomes
from orthotune.worlds.image import PIPELINE

IMAGES = ("subject", "control", "t2i")


@pytest.mark.parametrize("tool", MADE_FOR)
def test_an_adapter_is_what_identify_says_of_its_settings(tool: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"for: {tool}\nblock_size: 16\n")
    settings = load_settings(SubjectSettings, tmp_path / "s.yaml", ["target_modules=[to_q]"])
    family = open_family(PIPELINE)
    torch.manual_seed(0)
    for part in add_adapter(family, adapter_settings(settings)).values():
        for parameter in part.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
    (tmp_path / "a").mkdir()
    save_adapter(family, tmp_path / "a")
    before, after = what_it_becomes(tmp_path / "s.yaml"), identify(tmp_path / "a")
    assert list(after.kinds) == [before.kind]
    assert after.conversions == {**before.conversions, "diff": "lossless"}
    assert before.conversions[tool] == "lossless"
    assert settings.record()["made_for"] == tool


@pytest.mark.parametrize("recipe", IMAGES)
def test_a_preset_says_in_its_first_line_where_its_files_go(recipe: str) -> None:
    for name in preset.names(recipe):
        reason, found = preset.read(name, recipe).reason, what_it_becomes(f"{recipe}/{name}")
        assert "for=comfyui" in reason and ("Files for PEFT" in reason) == (found.conversions["peft"] == "lossless")


def test_what_contradicts_the_tool_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"rotation\.side=in and for=comfyui contradict"):
        load_settings(SubjectSettings, None, ["for=comfyui", "rotation.side=in"])
    with pytest.raises(RecipeError, match=r"rotation\.conv=channels rotates the input's channels"):
        load_settings(SubjectSettings, None, ["for=comfyui", "rotation.conv=channels"])
    with pytest.raises(RecipeError, match="made_for has no meaning for method=lora"):
        load_settings(SubjectSettings, None, ["for=comfyui", "method=lora"])
    with pytest.raises(RecipeError, match="'comfyui', 'peft' or 'onetrainer'"):
        load_settings(SubjectSettings, None, ["for=comfy"])
    assert SubjectSettings(**{"for": "comfyui"}).rotation == {"side": "out"}
    assert load_settings(SubjectSettings, None, ["for=comfyui", "rotation.side=out"]).rotation == {"side": "out"}


def test_settings_are_told_from_adapters(tmp_path: Path) -> None:
    assert is_settings("llama") and is_settings("t2i/sdxl") and not is_settings("t2i/none")
    assert not is_settings(tmp_path) and not is_settings("sub/sub/x.safetensors")
    (tmp_path / "s.yaml").write_text("method: lora\n")
    found = what_it_becomes(tmp_path / "s.yaml")
    assert found.kind is None and not found.conversions
    (tmp_path / "s.yaml").write_text("preset: sdxl\nrotation: {side: out, magnitude: true}\n")
    assert what_it_becomes(tmp_path / "s.yaml").kind == "out exact with scaled rows"
    text = "\n".join(lines_before({"source": "x", "method": "oft", "kind": "in exact",
                                   "conversions": {"comfyui": "impossible"}}))  # fmt: skip
    assert "for=comfyui" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("for: comfy", "one of comfyui, peft, onetrainer"),
        ("method: xyz", "one of oft, coft, lora, full"),
        ("rotation: 5", "options of OFTConfig"),
        ("rotation: {sid: out}", "Did you mean 'side'"),
        ("- a", "lines of `key: value`"),
        ("a: [", "not YAML"),
    ],
)
def test_settings_that_cannot_be_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        what_it_becomes(tmp_path / "s.yaml")


#: what users of other trainers type -> what it is called here
OTHERS = {"lr": "learning_rate", "epochs": "steps", "network_dim": "block_size", "repeats": "steps",
          "cache_latents": None, "max_train_steps": "steps", "min_snr_gamma": "min_snr", "sede": "seed",
          "resolutoin": "resolution"}  # fmt: skip


@pytest.mark.parametrize("key", OTHERS)
def test_the_nearest_key_means_the_same(key: str) -> None:
    with pytest.raises(RecipeError) as fault:
        load_settings(SubjectSettings, None, [f"{key}=1"])
    meant = OTHERS[key]
    assert (f"Did you mean '{meant}'?" if meant else "Known keys:") in str(fault.value)


@pytest.mark.parametrize("recipe", IMAGES)
def test_every_image_recipe_has_it(recipe: str) -> None:
    assert "made_for" in RECIPES[recipe].settings_class().model_fields
