"""Fields of a trainer's config as keys of a recipe: passed on, refused with a reason, or corrected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import TrainingArguments

from orthotune.errors import RecipeError
from orthotune.recipes import trainer_keys
from orthotune.recipes.load import load_settings
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.trainer_settings import TrainerSettings, passed_arguments

#: The config of every recipe on a trainer of TRL.
CONFIGS = sorted({kind.trainer_config for recipe in RECIPES.values()
                  if issubclass(kind := recipe.settings_class(), TrainerSettings)} | {"trl:DPOConfig"})  # fmt: skip


class Settings(TrainerSettings):
    """Settings of a recipe that exists in this test alone."""

    recipe: ClassVar[str] = "toy"
    trainer_config: ClassVar[str] = "trl:DPOConfig"

    @classmethod
    def _from_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {"beta": 0.3, "label_smoothing": 0.2, "model": "text-world", "steps": 4}


def test_a_key_and_a_nested_key_mean_the_same_and_go_before_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("loss_type: hinge\nbeta: 0.1\ntrainer:\n  adam_beta2: 0.95\n")
    expected = {"beta": 0.5, "label_smoothing": 0.2, "loss_type": ["hinge"], "adam_beta2": 0.95}
    for spelling in ("beta=0.5", "trainer.beta=0.5"):
        given = ["preset=any", spelling]
        assert load_settings(Settings, None, given).trainer == {"beta": 0.5, "label_smoothing": 0.2}
    found = load_settings(Settings, file, ["preset=any", "beta=0.5"])
    assert found.trainer == expected
    assert Settings(**found.record()).trainer == expected == json.loads(json.dumps(found.record()))["trainer"]
    assert "trainer" in Settings().record() and Settings(preset="any", beta=1).trainer["beta"] == 1


def test_what_is_passed_reaches_the_config(tmp_path: Path) -> None:
    settings = Settings(output=tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0, 0.5], adam_beta1=0.8, steps=3)
    arguments = passed_arguments(settings, tmp_path, torch.float32, max_length=7)
    assert (arguments.loss_type, arguments.loss_weights, arguments.adam_beta1) == (["sigmoid", "sft"], [1.0, 0.5], 0.8)
    assert (arguments.beta, arguments.max_steps, arguments.max_length, arguments.report_to) == (0.3, 3, 7, [])
    faulty = Settings(output=tmp_path, loss_type=["sigmoid", "sft"], loss_weights=[1.0])
    with pytest.raises(RecipeError, match=r"DPOConfig \(.*loss_weights=\[1.0\].*same length as `loss_type`"):
        passed_arguments(faulty, tmp_path, torch.float32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("betta=0.2", "command line: unknown key 'betta'. Did you mean 'beta'?"),
        ("stepps=2", "command line: unknown key 'stepps'. Did you mean 'steps'?"),
        ("adam_beta=0.2", "Did you mean 'adam_beta"),
        ("trainer.betta=1", "command line: unknown key 'betta'. Did you mean 'beta'?"),
        ("beta=high", "command line: beta='high' is no value of DPOConfig.beta: a valid number is needed."),
        ("beta=true", "command line: beta=True is no value of DPOConfig.beta: a number is needed."),
        ("trainer.max_length=8", "max_length is a setting of the recipe itself. Write max_length=VALUE"),
        ("max_steps=8", "command line: max_steps is decided by the run. Write steps."),
        ("per_device_train_batch_size=8", "Write batch_size."),
        ("lr_scheduler_type=linear", "Write schedule."),
        ("report_to=wandb", "report_to is decided by the run. Write trackers"),
        ("run_name=mine", "run_name is decided by the run: a run stays on this machine"),
        ("trust_remote_code=true", "code of a model repository is never run. Leave it out."),
        ("loss_type=sigmoidd", "has no value 'sigmoidd'. Did you mean 'sigmoid'? Choose one of sigmoid, hinge"),
        ("f_divergence_type=tv", "has no value 'tv'. Choose one of reverse_kl, forward_kl"),
        ("loss_weights=[a]", "loss_weights=['a'] is no value of DPOConfig.loss_weights"),
        ("trainer=5", "trainer=5. Needed: a valid dictionary"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_remedy(given: str, words: str) -> None:
    with pytest.raises(RecipeError) as found:
        load_settings(Settings, None, [given])
    assert words in str(found.value)


def test_several_faults_are_listed_together_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("steps: 3\nbeta: high\noutput_dir: here\n")
    with pytest.raises(RecipeError) as found:
        load_settings(Settings, file)
    message = str(found.value)
    assert f"{file}, line 2: beta='high'" in message
    assert f"{file}, line 3: output_dir is decided by the run. Write output." in message


@pytest.mark.parametrize("name", [*CONFIGS, "trl:GRPOConfig", "trl:KTOConfig", "trl:RewardConfig"])
def test_no_field_that_a_run_sets_is_passed_on(name: str, tmp_path: Path) -> None:
    kind = type("Kind", (Settings,), {"trainer_config": name})
    seen: dict[str, Any] = {}
    asked = kind(output=tmp_path, steps=None, epochs=1.0, save_every=2, preset=None, model="other")

    class Recording(TrainingArguments):
        def __init__(self, **options: Any) -> None:
            seen.update(options)

    from orthotune.recipes.text_job import trainer_arguments
    from orthotune.text.arguments import run_arguments

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orthotune.recipes.text_job.engines.configure", lambda arguments, *_, **__: arguments)
        trainer_arguments(
            lambda *given, **more: run_arguments(Recording, *given, **more), asked, tmp_path, torch.float32
        )
    assert seen and not seen.keys() & set(kind.passed_keys())
    assert set(trainer_keys.BY_SETTING.values()) <= kind.model_fields.keys()  # each remedy is a setting
    assert {"beta", "adam_beta1"} & set(kind.passed_keys())
    for field in trainer_keys.fields_of(name).values():  # a value that the help lists is one that the config has
        default = field.default if not isinstance(field.default, list) else None
        if (listed := trainer_keys.choices_of(field)) and isinstance(default, str):
            assert default in listed, (field.name, listed)
