"""The word for sharing a run, and the launch that it fits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from orthotune.errors import RecipeError
from orthotune.recipes.load import load_settings
from orthotune.recipes.settings import SFTSettings
from orthotune.runs import engines, processes

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples" / "scale-out"


@pytest.mark.parametrize("word", ["ddp", "fsdp2", "zero2", "zero3"])
def test_a_word_for_several_processes_needs_a_launcher(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(RecipeError, match=rf"distributed={word}.*one process.*torchrun .*distributed={word}"):
        processes.check_launch(word)
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes.check_launch(word)


def test_several_processes_need_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.check_launch("none")
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(RecipeError, match="4 processes.*distributed=ddp"):
        processes.check_launch("none")


def test_the_launcher_is_not_configured_for_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    processes.check_launch("fsdp2")
    with pytest.raises(RecipeError, match="ACCELERATE_USE_FSDP"):
        processes.check_launch("ddp")


def test_the_examples_of_a_step_are_shared_out_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert processes.share(12) == 4
    with pytest.raises(RecipeError, match="batch_size=8.*3 processes"):
        processes.share(8)


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="DeepSpeed is here")
def test_zero_without_deepspeed_says_how_to_get_it() -> None:
    with pytest.raises(RecipeError, match="distributed=zero2.*pip install deepspeed"):
        engines.arguments_for("zero2")


@pytest.mark.parametrize("method", ["coft", "full"])
def test_zero_is_refused_for_what_it_would_train_wrongly(method: str) -> None:
    with pytest.raises(RecipeError, match="distributed=zero3 does not train"):
        load_settings(SFTSettings, None, [f"method={method}", "distributed=zero3"])


def test_the_examples_are_read() -> None:
    settings = load_settings(SFTSettings, EXAMPLES / "recipe.yaml", ["distributed=fsdp2", "resume=auto"])
    assert settings.distributed == "fsdp2" and settings.batch_size % 16 == 0
    tasks = yaml.safe_load((EXAMPLES / "skypilot.yaml").read_text())
    for words in (tasks["run"], (EXAMPLES / "slurm.sbatch").read_text()):
        assert "-m orthotune train sft examples/scale-out/recipe.yaml" in words
