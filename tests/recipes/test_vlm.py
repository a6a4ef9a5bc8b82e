"""Answers about images: three methods on a tiny Llava, exact at the start, resumed, reloaded and merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from orthotune import PeftModel, get_peft_model
from orthotune.errors import OrthotuneError, RecipeError
from orthotune.recipes.load import load_settings
from orthotune.recipes.text_job import adapter_config
from orthotune.recipes.vlm import VLMSettings, job, run
from orthotune.worlds.image_classes import coloured_digits
from orthotune.worlds.tiny_models import tiny_model
from tests.support.head_runs import TOLERANCE, check_resumed, lines, merged, silent
from tests.support.tiny_text import write_jsonl

Image: Any = pytest.importorskip("PIL.Image")
KIND = AutoModelForImageTextToText
METHODS = ("oft", "lora", "full")


def questions(folder: Path, count: int) -> Path:
    """Images and a table of questions about them, every second one as messages."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for image, name in coloured_digits(count=count):
        (folder / f"{image.name}.png").write_bytes(image.content())
        if len(rows) % 2:
            rows.append({"image": f"{image.name}.png", "prompt": "Which colour?", "completion": name})
        else:
            messages = [{"role": "user", "content": "Name it."}, {"role": "assistant", "content": name}]
            rows.append({"images": [f"{image.name}.png"], "messages": messages})
    return write_jsonl(folder / "table.jsonl", rows)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = tmp_path_factory.mktemp("cache")
    data = questions(tmp_path_factory.mktemp("vlm"), 12)

    def make(output: Path, **more: Any) -> VLMSettings:
        values: dict[str, Any] = {"model": "tiny-llava", "data": str(data), "steps": 3, "held_out": 0.2}
        values |= {"batch_size": 4, "learning_rate": 5e-3, "warmup": 0, "save_every": 2}
        if more.get("method", "oft") == "oft":
            values["block_size"] = 8
        return VLMSettings(**(values | more), output=output)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORTHOTUNE_CACHE", str(cache))
        yield make


@pytest.fixture(scope="module")
def runs(given: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    old = questions(folder / "old", 3)
    settings = {method: given(folder / method, method=method, old_data=str(old)) for method in METHODS}
    return {method: (one, run(one, silent, bar=False)) for method, one in settings.items()}


def _inputs() -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    tokens = torch.tensor([[9, *[2] * 16, 40, 41, 7]])  # 16 patches of 8 pixels
    return {"input_ids": tokens, "pixel_values": torch.rand(1, 3, 32, 32, generator=chance)}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_gains_in_nats_per_token(runs: Any, method: str) -> None:
    settings, record = runs[method]
    assert record.gain is not None and record.gain > 0 and record.forgetting is not None
    steps = lines(settings.output)
    assert [line["step"] for line in steps] == [0, 1, 2, 3]
    assert (settings.output / ("model" if method == "full" else "adapter") / "chat_template.jinja").is_file()


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_merging_keeps_logits_and_processor(runs: Any, method: str, tmp_path: Path) -> None:
    output = runs[method][0].output
    tuned = PeftModel.from_pretrained(KIND.from_pretrained(tiny_model("tiny-llava")), output / "adapter").eval()
    plain = merged(KIND, output, tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(plain(**_inputs()).logits, tuned(**_inputs()).logits, **TOLERANCE)
    assert {"processor_config.json", "chat_template.jinja"} <= {path.name for path in (tmp_path / "merged").iterdir()}


@pytest.mark.parametrize("method", ["oft", "lora"])
def test_before_the_first_step_the_logits_are_those_of_the_base(runs: Any, method: str) -> None:
    settings = runs[method][0]
    parts = job(settings)
    base, model = parts.model(torch.float32).eval(), parts.model(torch.float32)
    adapter = adapter_config(settings, model, [], parts.task)
    with torch.no_grad():
        found = get_peft_model(model, adapter).eval()(**_inputs()).logits
        assert torch.equal(found, base(**_inputs()).logits)


def test_a_run_that_was_cut_ends_with_the_same_bits(runs: Any, tmp_path: Path) -> None:
    settings, _ = runs["oft"]
    check_resumed(run, settings.model_copy(update={"output": tmp_path / "cut"}), settings.output)


USER, ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": "red"}
MARKED = {"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "?"}]}
GOOD = {"image": "good.png", "prompt": "?", "completion": "red"}
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"prompt": "?", "completion": "red"}, "line 2. Found: .*Needed: images"),
    "a missing file": ({**GOOD, "image": "lost.png"}, "lost.png"),
    "an unreadable image": ({**GOOD, "image": "broken.png"}, "broken.png"),
    "a number as an image": ({**GOOD, "image": 3}, "column 'image'. Found: int"),
    "an empty list of images": ({"images": [], "messages": [USER, ANSWER]}, "column 'images'. Found: "),
    "an empty prompt": ({**GOOD, "prompt": " "}, "column 'prompt'. Found: an empty text"),
    "no completion": ({"image": "good.png", "prompt": "?"}, "Needed: completion"),
    "no answer at the end": ({"image": "good.png", "messages": [USER, USER]}, "a last message of the role 'user'"),
    "one message": ({"image": "good.png", "messages": [ANSWER]}, "a question and an answer"),
    "messages that are none": ({"image": "good.png", "messages": "hello"}, "column 'messages'"),
    "more places than images": ({"image": "good.png", "messages": [MARKED, ANSWER]}, "1 images and 2 places"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_is_refused_in_words(case: str, given: Any, tmp_path: Path) -> None:
    row, message = WRONG[case]
    Image.new("RGB", (9, 7)).save(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    data = write_jsonl(tmp_path / "table.jsonl", [GOOD, row])
    with pytest.raises(OrthotuneError, match=message):
        run(given(tmp_path / "run", data=str(data), held_out=0), silent, bar=False)
    assert not (tmp_path / "run").exists()


def test_a_language_model_is_refused(given: Any, model_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="model="):
        run(given(tmp_path / "run", model=str(model_path)), silent, bar=False)


@pytest.mark.parametrize(
    ("words", "message"), [(["max_length=9"], "max_length has no meaning for train vlm"), (["imgs=9"], "unknown key")]
)
def test_wrong_settings_are_refused_in_words(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_settings(VLMSettings, None, words)


def test_the_built_in_preset_needs_no_arguments(given: Any) -> None:
    settings = load_settings(VLMSettings)
    assert settings.model == "tiny-llava" and len(job(settings).data().domains["new"]) == 200
