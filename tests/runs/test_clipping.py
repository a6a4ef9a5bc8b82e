"""The norm of the gradient in a run's lines is the one before clipping, and clipping at every step is warned about."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.clipping import STRETCH, ClippingWatch
from orthotune.runs.metrics_log import MetricsLog, read_lines
from tests.support.known_curves import _known_curves  # noqa: F401
from tests.support.tiny_text import save_model


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny model, rows of one length to learn and none to measure on."""
    home = tmp_path_factory.mktemp("tiny")
    save_model(home / "model", dtype="float32")
    lines = [chr(97 + number) * 4 + "the quick brown fox jumps over the lazy dog"[number % 9 :] for number in range(40)]
    (home / "texts.txt").write_text("\n".join(lines))
    return {"model": str(home / "model"), "data": str(home / "texts.txt"), "old_data": "none", "steps": 3,
            "eval_every": 1, "max_length": 32, "batch_size": 2, "block_size": 4}  # fmt: skip


def _run(folder: Path, usual: dict[str, Any], callbacks: Any = (), **settings: Any) -> Any:
    sft.run(SFTSettings(**usual | settings, output=folder), say=lambda _: None, bar=False, callbacks=callbacks)
    return read_lines(folder / "metrics.jsonl")[1:]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("magnitude", [False, True])
def test_a_text_run_logs_the_norm_before_clipping(
    tmp_path: Path, usual: dict[str, Any], parts: int, magnitude: bool
) -> None:
    options: dict[str, Any] = {"gradient_accumulation": parts, "rotation": {"magnitude": magnitude}}
    free = _run(tmp_path / "free", usual, max_grad_norm=0, **options)
    clipped = _run(tmp_path / "clipped", usual, max_grad_norm=1e-3, **options)
    # The first step starts from the same parameters. float32: the norm is taken over and multiplied back.
    assert clipped[0]["gradient_norm"] == pytest.approx(free[0]["gradient_norm"], rel=1e-5)
    assert all(line["gradient_norm"] > 0.01 for line in [*free, *clipped])
    inner = [lines[0]["diagnosis"]["gradient_norm"] for lines in (free, clipped)]
    assert inner[1] == pytest.approx(inner[0], rel=1e-4)
    # The diagnosis is about what turns, the line about everything that learns.
    assert inner[0] <= free[0]["gradient_norm"] * (1 + 1e-5)
    if not magnitude:
        assert inner[0] == pytest.approx(free[0]["gradient_norm"], rel=1e-4)


def test_accumulated_parts_have_the_norm_of_their_mean(tmp_path: Path, usual: dict[str, Any]) -> None:
    one = _run(tmp_path / "one", usual, batch_size=4, max_grad_norm=1e-3)
    parts = _run(tmp_path / "parts", usual, batch_size=2, gradient_accumulation=2, max_grad_norm=1e-3)
    # Rows of one length, so a mean of means is the mean; sums of float32 in another order.
    assert parts[0]["gradient_norm"] == pytest.approx(one[0]["gradient_norm"], rel=1e-3)


def test_a_step_that_is_left_out_has_no_norm(tmp_path: Path, usual: dict[str, Any]) -> None:
    import torch
    from transformers import TrainerCallback

    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
            if state.global_step == 1:
                layer = seen["model"].get_submodule("base_model.model.model.layers.0.mlp.down_proj")

                def spoil(*_: Any) -> Any:
                    hook.remove()
                    return torch.full_like(_[2], math.nan)

                hook = layer.register_forward_hook(spoil)

    lines = _run(tmp_path / "run", usual, callbacks=[Spoil()])
    assert [line["gradient_norm"] is None for line in lines] == [False, True, False]


def _lines(*norms: float | None) -> list[dict[str, Any]]:
    return [{"step": step, "gradient_norm": norm} for step, norm in enumerate(norms, 1)]


def test_clipping_at_every_step_is_warned_about_once() -> None:
    watch = ClippingWatch(1.0)
    found = [watch.see(line["step"], line["gradient_norm"]) for line in _lines(*[2.0, 4.0, 8.0] * STRETCH)]
    words = [(step, one) for step, one in enumerate(found, 1) if one]
    assert [step for step, _ in words] == [STRETCH]
    for part in (f"steps 1 to {STRETCH}", "2 to 8", "max_grad_norm=1", "max_grad_norm=8", "max_grad_norm=0"):
        assert part in words[0][1]


@pytest.mark.parametrize("limit", [0.0, math.inf])
def test_without_clipping_there_is_no_warning(limit: float) -> None:
    watch = ClippingWatch(limit)
    assert not any(watch.see(step, 9.0) for step in range(3 * STRETCH))


def test_a_step_within_the_limit_begins_anew_and_one_that_was_left_out_does_not_count() -> None:
    norms: list[float | None] = [2.0] * (STRETCH - 1) + [0.5] + [2.0] * (STRETCH - 1) + [None, math.nan]
    watch = ClippingWatch(1.0)
    assert not any(watch.see(step, norm) for step, norm in enumerate(norms))
    assert watch.see(len(norms), 2.0)


def test_a_resumed_run_goes_on_counting_and_does_not_repeat() -> None:
    before = _lines(*[2.0] * (STRETCH - 1))
    assert ClippingWatch(1.0, before).see(STRETCH, 2.0)
    assert not ClippingWatch(1.0, [*before, {"step": STRETCH, "gradient_norm": 2.0, "clipping": "..."}]).see(99, 2.0)
    # Lines of runs before this record: no norm, no count.
    assert not ClippingWatch(1.0, [{"step": step} for step in range(STRETCH)]).see(STRETCH, 2.0)


def test_the_warning_is_in_the_log_and_in_the_record(
    tmp_path: Path, usual: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orthotune.runs.clipping.STRETCH", 3)
    heard: list[str] = []
    settings = SFTSettings(**usual | {"steps": 5, "max_grad_norm": 1e-3}, output=tmp_path / "run")
    record = sft.run(settings, say=heard.append, bar=False)
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    (words,) = [line["clipping"] for line in lines if "clipping" in line]
    assert "clipping" in lines[3] and words in record.notes
    assert sum(words in one for one in heard) == 1


def test_what_is_attached_twice_joins_the_same_line(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.attach(1, {"diagnosis": 1})
    log.attach(1, {"gradient_norm": 2.0})
    log.append({"step": 1, "train_loss": 3.0})
    assert log.lines == [{"step": 1, "diagnosis": 1, "gradient_norm": 2.0, "train_loss": 3.0}]


def test_a_run_of_before_goes_on_without_saying_a_norm() -> None:
    assert "max_grad_norm" not in SFTSettings(steps=1).record()
    assert SFTSettings(steps=1, max_grad_norm=3).record()["max_grad_norm"] == 3
