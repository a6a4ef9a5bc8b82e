"""A run says which model it trains, and refuses names of targets that the model does not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.errors import RecipeError
from orthotune.recipes.settings import SFTSettings
from orthotune.recipes.text_job import adapter_config, model_note
from orthotune.recipes.text_settings import WITH_ADAPTER
from tests.support.tiny_text import make_model


def test_the_model_is_named() -> None:
    assert model_note(SFTSettings()).startswith("model: text-world, the small model that comes with the package")
    assert model_note(SFTSettings(model="models/own", data="d")) == "model: models/own"


@pytest.mark.parametrize("method", WITH_ADAPTER)
def test_one_wrong_target_of_two(method: str, tmp_path: Path) -> None:
    given = {"model": "m", "data": "d", "method": method, "target_modules": ["q_prj", "v_proj"], "output": tmp_path}
    if method == "lora":
        given["lora_rank"] = 2
    with pytest.raises(RecipeError, match=r"no module of LlamaForCausalLM is called q_prj.*q_proj.*unmatched_targets"):
        adapter_config(SFTSettings(**given), make_model(), [], "CAUSAL_LM")
    settings = SFTSettings(**given, unmatched_targets="skip")
    assert adapter_config(settings, make_model(), [], "CAUSAL_LM").target_modules == {"q_prj", "v_proj"}


@pytest.mark.parametrize("targets", ["all-linear", r".*\.q_proj", ["layers.0.self_attn.q_proj", "v_proj"]])
def test_targets_that_are_there(targets: str | list[str]) -> None:
    settings = SFTSettings(model="m", data="d", target_modules=targets)
    assert adapter_config(settings, make_model(), [], "CAUSAL_LM") is not None
