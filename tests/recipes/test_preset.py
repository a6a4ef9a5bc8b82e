from __future__ import annotations

import pytest

from orthotune.errors import RecipeError
from orthotune.recipes import preset
from orthotune.recipes.settings import METHODS, SFTSettings


@pytest.mark.parametrize("name", preset.names())
@pytest.mark.parametrize("method", METHODS)
def test_every_preset_makes_settings_for_every_method(name: str, method: str) -> None:
    given = {} if name == "text-world" else {"model": "m", "data": "d"}
    settings = SFTSettings(preset=name, method=method, **given)
    rates = preset.settings_of(name)["learning_rate"]
    assert set(rates) == set(METHODS)
    assert settings.learning_rate == rates[method]
    if method == "oft":
        assert settings.block_size == preset.settings_of(name)["block_size"]


@pytest.mark.parametrize("name", preset.names())
def test_every_preset_gives_its_reason(name: str) -> None:
    assert preset.read(name).text.startswith("# ")
    assert len(preset.read(name).reason) > 40


def test_families_are_there() -> None:
    assert {"text-world", "llama", "qwen", "gemma", "mistral", "phi", "gpt2"} <= set(preset.names())


def test_an_unknown_preset() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'gemma'"):
        preset.read("gema")


def test_what_retains_is_told_apart_by_method() -> None:
    given = {"preset": "retain", "model": "m", "data": "d"}
    oft, lora, full = (SFTSettings(**given, method=method) for method in ("oft", "lora", "full"))
    assert oft.rotation == {"magnitude": True} and oft.magnitude_factor > 1
    assert (oft.keep, oft.keep_data) == (lora.keep, lora.keep_data) == (1, "generated")
    assert (full.keep, full.keep_data) == (0, None) and not lora.rotation
    assert SFTSettings(**given, keep=0).keep_data is None
    # What is said of the rotation stands for all of it.
    assert SFTSettings(**given, rotation={"side": "out"}).rotation == {"side": "out"}
