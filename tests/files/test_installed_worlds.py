"""The worlds' files are found in the wheel that holds them; where it is missing, the message says what to install."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import orthotune
import orthotune_worlds
from orthotune.errors import DataError
from orthotune.files.installed_worlds import current, need, world_folder, world_of
from orthotune.worlds import image, text

#: What an adapter may have recorded, on this system or another one.
TEXT_BEFORE = "/old/lib/python3.11/site-packages/orthotune/worlds/text/model"
ELSEWHERE = ("/env/orthotune_worlds/image/pipeline", "C:\\env\\orthotune\\worlds\\image\\pipeline\\")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """``orthotune_worlds`` is not installed."""
    monkeypatch.setitem(sys.modules, "orthotune_worlds", None)


def test_every_file_is_in_the_package_of_the_data() -> None:
    folder = Path(orthotune_worlds.__file__).parent
    places = [text.MODEL, text.CARD, image.PIPELINE, image.CARD, image.DATA, *image.CLASSIFIERS.values()]
    assert all(place.exists() and place.is_relative_to(folder) for place in places)
    assert not [p for p in Path(orthotune.__file__).parent.rglob("*") if p.suffix in (".safetensors", ".gz")]


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    "use",
    [
        lambda: text.MODEL,
        lambda: text.load_split("new_test"),
        lambda: image.PIPELINE,
        image.load_pipeline,
        image.load_sources,
        lambda: image.load_classifier("digit"),
        lambda: current(TEXT_BEFORE),
    ],
)
def test_without_the_data_the_message_says_what_to_install(use: Callable[[], Any]) -> None:
    with pytest.raises(DataError, match=r'no package orthotune_worlds.*Run pip install "orthotune\[worlds\]"'):
        use()


@pytest.mark.usefixtures("no_data")
def test_without_the_data_a_recipe_ends_in_words_and_other_models_are_not_asked(tmp_path: Path) -> None:
    from orthotune.cli.evaluate_drift import measure
    from orthotune.recipes import sft
    from orthotune.recipes.settings import SFTSettings

    with pytest.raises(DataError, match=r"orthotune\[worlds\]"):
        sft.run(SFTSettings(output=tmp_path / "run", steps=1))
    # what is missing is the texts, whatever else is not there
    with pytest.raises(DataError, match="Name them with --data"):
        measure(tmp_path, None, "somebody/model", 8, 1)


def test_an_incomplete_installation_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"judge of taste\. Found: no file taste\.bin in .*orthotune\[worlds\]"):
        need(tmp_path / "taste.bin", "judge of taste")
    with pytest.raises(DataError, match="no folder"):
        _emptied(tmp_path)


def _emptied(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(orthotune_worlds, "files", lambda name: folder)
        world_folder("text")


def test_a_name_that_no_module_has_stays_an_attribute_error() -> None:
    assert not hasattr(text, "MODLE") and not hasattr(image, "_HOME")
    with pytest.raises(ValueError, match="needed is one of text, image"):
        orthotune_worlds.path("sound")


def test_paths_of_the_worlds_models_lead_to_those_that_are_installed(tmp_path: Path) -> None:
    assert current(TEXT_BEFORE) == str(text.MODEL) and world_of(TEXT_BEFORE) == "text"
    assert [current(path) for path in ELSEWHERE] == [str(image.PIPELINE)] * 2
    assert {world_of(path) for path in (*ELSEWHERE, str(image.PIPELINE))} == {"image"}
    for other in ("gpt2", "me/orthotune", "/data/worlds/text/model", f"{TEXT_BEFORE}/config.json", str(text.MODEL)):
        assert current(other) == other
    there = tmp_path / "orthotune" / "worlds" / "text" / "model"
    there.mkdir(parents=True)
    assert current(str(there)) == str(there)  # an older version's own, still in its place


def test_an_adapter_of_an_older_version_is_merged(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from orthotune.operations.merge import merge

    model = AutoModelForCausalLM.from_pretrained(text.MODEL, dtype=torch.float32)
    config = orthotune.OFTConfig(oft_block_size=8, target_modules=["q_proj"])
    tuned = orthotune.get_peft_model(model, config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.05)
    tuned.save_pretrained(tmp_path / "adapter")
    recorded = tmp_path / "adapter" / "adapter_config.json"
    recorded.write_text(json.dumps(json.loads(recorded.read_text()) | {"base_model_name_or_path": TEXT_BEFORE}))
    ids = torch.arange(12)[None]
    expected = tuned.eval()(ids).logits
    with tuned.disable_adapter():
        assert (tuned(ids).logits - expected).abs().max() > 0.1
    for stream in (False, True):
        folder = merge(tmp_path / "adapter", tmp_path / f"stream-{stream}", stream=stream)
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        torch.testing.assert_close(merged(ids).logits, expected, atol=2e-2, rtol=0)  # files in half precision
