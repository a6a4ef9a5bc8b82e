from __future__ import annotations

import pytest
from pydantic import ValidationError

from orthotune.recipes.settings import LEARNING_RATES, METHODS, SFTSettings


def test_without_arguments_it_is_the_text_world() -> None:
    settings = SFTSettings()
    assert (settings.preset, settings.model, settings.data) == ("text-world", "text-world", "text-world/new_train")
    assert settings.old_data == "text-world/old_validation"


@pytest.mark.parametrize("method", METHODS)
def test_each_method_has_its_own_rate(method: str) -> None:
    assert SFTSettings(method=method, model="m", data="d").learning_rate == LEARNING_RATES[method]
    assert SFTSettings(method=method, learning_rate=0.5).learning_rate == 0.5
    rates = {"oft": 1, "coft": 2, "lora": 3, "full": 4}
    assert SFTSettings(method=method, learning_rate=rates).learning_rate == rates[method]


def test_a_preset_gives_way_to_what_is_said() -> None:
    settings = SFTSettings(preset="llama", model="m", data="d", batch_size=2, r=8)
    assert (settings.batch_size, settings.max_length) == (2, 2048)
    # The preset's block size would contradict r, its learning rate is per method.
    assert (settings.r, settings.block_size, settings.learning_rate) == (8, None, 4e-4)
    assert SFTSettings(preset="llama", model="m", data="d", method="full").target_modules == "all-linear"


def test_held_out_data_of_a_preset_is_not_used_for_other_data() -> None:
    assert SFTSettings(data="mine.jsonl").eval_data is None
    assert SFTSettings(epochs=2).steps is None


def test_coft_is_given_room_to_learn() -> None:
    assert SFTSettings(method="coft").eps == 1.0
    assert SFTSettings(method="coft", eps=0.5).eps == 0.5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"method": "oft", "eps": 0.1}, "eps has no meaning for method=oft. Leave it out, or choose method=coft"),
        ({"method": "full", "block_size": 8}, "block_size has no meaning for method=full"),
        ({"steps": 3, "epochs": 1}, "steps and epochs are mutually exclusive"),
        ({"method": "lora", "lora_rank": 2, "block_size": 8}, "lora_rank and block_size are mutually exclusive"),
        ({"learning_rate": 0}, "greater than 0"),
        ({"merge_aware": True}, "merge_aware with no quantization has no meaning"),
        ({"merge_aware": True, "method": "lora", "quantization": "nf4"}, "merge_aware has no meaning for method=lora"),
        ({"packing": "bfd"}, "'auto', 'none', 'wrapped' or 'bfd_split'"),
    ],
)
def test_contradictions(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SFTSettings(**values)


@pytest.mark.parametrize("method", METHODS)
def test_a_record_gives_the_same_settings_again(method: str) -> None:
    settings = SFTSettings(method=method, steps=7, output="somewhere")
    assert SFTSettings(**settings.record()).record() == settings.record()


def test_runs_from_before_a_setting_existed_can_be_resumed() -> None:
    assert not {"lora", "keep"} & SFTSettings(method="lora").record().keys()
    assert SFTSettings(method="lora", lora={"use_dora": True}).record()["lora"] == {"use_dora": True}
