"""Steps of the image loop whose loss or gradient is not finite: left out, counted, named, and at some time the end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from orthotune.errors import TrainingError
from orthotune.image.loop.accelerator import make_accelerator
from orthotune.image.loop.loop import Every, train
from orthotune.image.loop.skipped_steps import OVERFLOWS
from orthotune.image.loop.trainee import Trainee
from orthotune.runs.checkpoint_manifest import check
from orthotune.runs.directory import RunDirectory
from tests.image.toy_training import Memory, options, run, tiny_trainee

#: A linear layer of the tiny UNet that is adapted, as the trainee names it.
LAYER = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


def learned(trainee: Trainee) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainee.learning().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def at(*steps: int, do: Callable[[Trainee], object]) -> Every:
    """Does something to the model before each of these steps."""
    return Every(lambda step, trainee, log: do(trainee) if step + 1 in steps else None, 1)


def broken(trainee: Trainee, gradient: bool = False) -> None:
    """NaN out of a layer, or infinity into its gradient, in the next step only; looking again meets it, too."""
    layer = trainee.get_submodule(LAYER)

    def spoil(_: Any, __: Any, output: Tensor) -> Tensor:
        if gradient:
            hook.remove()
            output.register_hook(lambda grad: grad * math.inf)
            return output
        if not torch.is_grad_enabled():
            hook.remove()
        return output * math.nan

    hook = layer.register_forward_hook(spoil)


@pytest.mark.parametrize("gradient", [False, True])
def test_it_changes_nothing_and_is_counted(tmp_path: Path, gradient: bool) -> None:
    said: list[str] = []
    seen: dict[int, dict[str, Tensor]] = {}
    trainee = tiny_trainee()
    look = Every(lambda step, trainee, log: seen.update({step: learned(trainee)}), 1)
    spoil = at(3, 4, do=lambda trainee: broken(trainee, gradient))
    log = run(tmp_path, options(gradient_accumulation=2), trainee, say=said.append, on_step=[look, spoil])
    kind = "gradient" if gradient else "loss"
    assert [line.get("left_out") for line in log.lines] == [None, None, kind, kind, None, None]
    assert [line["train_loss"] is None for line in log.lines] == [
        not gradient and step in (3, 4) for step in range(1, 7)
    ]
    assert same(seen[2], seen[4]) and not same(seen[4], seen[5])
    assert said == [
        f"Skipped: the {kind} of step {step} is NaN or infinite, first in layer '{LAYER}'. "
        f"No parameter was changed; {count} of at most 10 skipped steps." for count, step in ((1, 3), (2, 4))
    ]  # fmt: skip
    assert all(value.isfinite().all() for value in learned(trainee).values())
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-6" / "loop.json").read_text())
    assert state["skipped"] == 2


def test_a_broken_picture_is_left_out_and_the_average_as_it_was(tmp_path: Path) -> None:
    said: list[str] = []
    trainee = tiny_trainee()
    seen: dict[int, dict[str, Tensor]] = {}

    class Broken(Memory):
        def batch(self, indices: list[int]) -> Any:
            batch = super().batch(indices)
            if len(self.asked) in (3, 4):
                batch.latents.fill_(math.nan)
            return batch

    look = Every(lambda step, trainee, log: seen.update({step: learned(trainee)}), 1)
    log = run(tmp_path, options(ema=0.9), trainee, data=Broken(trainee.family), say=said.append, on_step=[look])
    assert [line["train_loss"] is None for line in log.lines] == [False, False, True, True, False, False]
    assert same(seen[2], seen[4]) and not same(seen[4], seen[5])
    assert ["step 3" in said[0], "step 4" in said[1], len(said)] == [True, True, 2]
    assert all("first in layer 'denoiser.conv_in'" in words for words in said)
    assert all(value.isfinite().all() for value in learned(trainee).values())


def test_training_that_has_diverged_stops_with_the_layer_and_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainee = tiny_trainee()

    def spoil(trainee: Trainee) -> None:
        trainee.get_submodule(LAYER).base_layer.weight.data[0, 0] = math.inf

    with pytest.raises(
        TrainingError, match=rf"loss of step 7.*'{LAYER}'.*3 such steps.*max_skipped is 2.*checkpoint-6"
    ):
        run(tmp_path, options(steps=20, save_every=3, max_skipped=2), trainee, on_step=[at(5, do=spoil)])
    kept = RunDirectory(tmp_path).newest_checkpoint()
    assert kept is not None and check(kept) == 6
    assert all(value.isfinite().all() for value in load_file(kept / "trained.safetensors").values())


def test_the_count_goes_on_after_a_resume(tmp_path: Path) -> None:
    said = options(max_skipped=1)

    def interrupt(_: Trainee) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, said, tiny_trainee(), on_step=[at(2, do=broken), at(5, do=interrupt)])
    kept = RunDirectory(tmp_path).newest_checkpoint()
    with pytest.raises(TrainingError, match="loss of step 6.*2 such steps"):
        run(tmp_path, said, tiny_trainee(), kept, on_step=[at(6, do=broken)])


def test_parameters_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    told: list[str] = []

    def spoil(trainee: Trainee) -> None:
        next(iter(trainee.learning().values())).data.view(-1)[0] = math.inf

    with pytest.raises(TrainingError, match="checkpoint-4 is kept"):
        run(tmp_path, options(max_skipped=1), tiny_trainee(), say=told.append, on_step=[at(5, do=spoil)])
    with pytest.raises(TrainingError, match="checkpoint-2 is kept"):
        said = options(max_skipped=2, save_every=2)
        run(tmp_path / "b", said, tiny_trainee(), say=told.append, on_step=[at(3, do=spoil)])
    assert [path.name for path in (tmp_path / "b" / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert any("Step 4: 'denoiser." in words and "no checkpoint is written" in words for words in told)


def _scaled(folder: Path, spoil: Every, told: list[str], **said: Any) -> Any:
    """float16 needs a GPU; its scaler does not, and is the part that skips."""
    accelerator, trainee = make_accelerator(options(**said)), tiny_trainee()
    accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    data, home = Memory(trainee.family), RunDirectory(folder)
    with torch.autocast("cpu", enabled=False):
        log = train(trainee, data, options(**said), home, None, told.append, accelerator=accelerator,
                    on_step=[spoil], bar=False)  # fmt: skip
    return log, accelerator.scaler


def test_an_overflow_that_the_scaler_meets_is_not_counted(tmp_path: Path) -> None:
    told: list[str] = []
    overflow = at(3, do=lambda trainee: broken(trainee, gradient=True))
    log, scaler = _scaled(tmp_path / "a", overflow, told, max_skipped=0)
    assert told == [] and scaler.get_scale() == 2.0**9 and not any("left_out" in line for line in log.lines)
    with pytest.raises(TrainingError, match="loss of step 3"):  # a loss has no scale yet: no overflow of the scaler's
        _scaled(tmp_path / "b", at(3, do=broken), told, max_skipped=0)


def test_a_scaler_that_finds_no_scale_ends_the_run(tmp_path: Path) -> None:
    always = at(*range(1, 99), do=lambda trainee: broken(trainee, gradient=True))
    with pytest.raises(TrainingError, match=rf"step {OVERFLOWS}.*{OVERFLOWS} overflows of half precision in a row"):
        _scaled(tmp_path, always, [], steps=OVERFLOWS + 5, save_every=100)
