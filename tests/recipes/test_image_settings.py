"""Settings of image recipes: presets, methods, contradictions."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from orthotune.errors import RecipeError
from orthotune.image.loop.options import LoopOptions
from orthotune.recipes import preset
from orthotune.recipes.image_settings import LEARNING_RATES, ImageSettings
from orthotune.recipes.load import load_settings
from orthotune.recipes.method_settings import METHODS
from orthotune.recipes.subject_settings import SubjectSettings, warnings

#: What a user says beside a preset of a model of their own.
OWN = {"model": "m", "instance_images": "dog", "instance_prompt": "a sks dog"}


@pytest.mark.parametrize("name", preset.names("subject"))
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_makes_settings_for_every_method(name: str, method: str) -> None:
    settings = SubjectSettings(preset=name, method=method, **({} if name == "image-world" else OWN))
    filled = preset.settings_of(name, "subject")
    assert settings.learning_rate == filled["learning_rate"][method]
    assert settings.steps == filled["steps"]
    assert (settings.eps is not None) == (method == "coft")
    if method == "oft":
        assert (settings.block_size, settings.r) == (filled.get("block_size"), filled.get("r"))
    assert LoopOptions.of(settings).batch_size == settings.batch_size


def test_families_and_recipes_have_presets() -> None:
    assert {"image-world", "stable-diffusion", "sdxl", "sd3", "flux"} <= set(preset.names("subject"))
    assert preset.recipes()[0] == "sft" and "subject" in preset.recipes()
    for recipe in preset.recipes()[1:]:
        for name in preset.names(recipe):
            found = preset.read(f"{recipe}/{name}")
            assert found.text.startswith("# ") and len(found.reason) > 40


def test_an_unknown_preset_names_those_of_the_recipe() -> None:
    with pytest.raises(RecipeError, match=r"one of auraflow, chroma, flux, .*Did you mean 'sdxl'"):
        load_settings(SubjectSettings, None, ["preset=sdx", *(f"{key}={value}" for key, value in OWN.items())])


def test_without_arguments_it_is_the_image_world() -> None:
    settings = SubjectSettings()
    assert (settings.preset, settings.model, settings.instance_images) == ("image-world",) * 3
    assert settings.subject == "sks" and settings.prior and warnings(settings) == []
    assert str(settings.output) == "runs/subject-oft"


def test_a_model_of_ones_own_needs_pictures() -> None:
    with pytest.raises(RecipeError, match="instance_images is missing. Needed: Folder with images of the subject"):
        load_settings(SubjectSettings, None, ["model=m"])
    settings = SubjectSettings(**OWN)
    assert settings.learning_rate == LEARNING_RATES["oft"] and not settings.prior


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "oft", "eps": 0.1}, "eps has no meaning for method=oft"),
        ({"block_size": 8, "r": 2}, "block_size and r are mutually exclusive"),
        ({"buckets": True}, "class images need images of one size"),
        ({"prior_target": "base", "method": "full"}, "prior_target has no meaning for method=full"),
        ({"prior_target": "base", "prior_weight": 0}, "target on class images, and there are none"),
        ({"prior_target": "base", "train_text_encoder": True}, "whose text encoder train_text_encoder changes"),
        ({"prior_target": "base", "rotation": {"bias": "oft_only"}}, "of which rotation.bias=oft_only trains"),
        ({"mixed_precision": "fp8"}, "'no', 'fp16' or 'bf16'"),
        ({"ema": 1.0}, "less than 1"),
        ({"sample_seeds": []}, "at least 1"),
    ],
)
def test_contradictions(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SubjectSettings(**values)


def test_the_word_for_the_subject() -> None:
    own = {"model": "m", "instance_images": "dog"}
    assert (
        SubjectSettings(**own, instance_prompt="a photo of ohwx dog", class_prompt="a photo of dog").subject == "ohwx"
    )
    assert SubjectSettings(**own, instance_prompt="my dog rex", token="rex").subject == "rex"
    missing = SubjectSettings(
        **own, instance_prompt="a dog", class_prompt="a dog", token="sks", sample_prompts=["a sks dog"]
    )
    assert warnings(missing) == ["instance_prompt 'a dog' does not hold 'sks'."]


@pytest.mark.parametrize("said", [{}, {"prior_target": "base"}, {"method": "lora", "prior_target": "base"}])
def test_what_class_pictures_teach_is_read_back(said: dict[str, str]) -> None:
    one = SubjectSettings(**said)
    assert one.prior_target == said.get("prior_target", "pictures")
    again = SubjectSettings(**one.record())
    assert again.record() == one.record() and again.prior_target == one.prior_target


@pytest.mark.parametrize("method", METHODS)
def test_a_record_gives_the_same_settings_again(method: str) -> None:
    settings = SubjectSettings(method=method, steps=7, output="somewhere")
    assert SubjectSettings(**settings.record()).record() == settings.record()


def test_full_finetuning_takes_the_same_layers() -> None:
    """Unlike a language model's, whose targets have no meaning in full: here only what would turn is trained."""
    assert "target_modules" not in ImageSettings.only_for
