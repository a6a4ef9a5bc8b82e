"""The loop: what it does is a function of its settings, whether it was interrupted or not."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from orthotune.image.loop.loop import Every
from orthotune.image.loop.trainee import Trainee
from orthotune.runs.checkpoint_on_signal import Stopped
from orthotune.runs.directory import RunDirectory
from orthotune.runs.metrics_log import MetricsLog
from tests.image.toy_training import Memory, options, run, tiny_trainee

FILES = ("trained.safetensors", "optimizer.safetensors", "average.safetensors")


def learned(trainee: Trainee) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainee.learning().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


CASES = [
    {"method": "oft"},
    # Dropout draws from torch's own generator, which has to come back, too.
    {"method": "oft", "rotation": {"module_dropout": 0.3}},
    {"method": "lora", "lora_rank": 2},
    {"method": "coft", "eps": 0.05},
    {"method": "full"},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda case: "-".join([case["method"], *case.get("rotation", {})]))
def test_a_resumed_run_is_the_run_that_was_never_killed(tmp_path: Path, settings: dict[str, Any]) -> None:
    said = options(ema=0.9, gradient_accumulation=2, noise_offset=0.05, min_snr=5.0)
    whole = tiny_trainee(**settings)
    lines = run(tmp_path / "whole", said, whole).lines

    class Killed(Exception):
        """After step 5, as by SIGKILL: nothing is saved on the way out."""

    def kill(step: int, trainee: Trainee, log: MetricsLog) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "cut", said, tiny_trainee(**settings), on_step=[Every(kill, 1)])
    checkpoint = RunDirectory(tmp_path / "cut").newest_checkpoint()
    assert checkpoint is not None and checkpoint.name == "checkpoint-4"
    again = tiny_trainee(**settings)
    resumed = run(tmp_path / "cut", said, again, checkpoint).lines
    assert same(learned(whole), learned(again))
    for name in FILES:
        one, other = (load_file(tmp_path / run / "checkpoints" / "checkpoint-6" / name) for run in ("whole", "cut"))
        assert one and same(one, other), name
    # The log, too, but for the time that it took.
    assert [line | {"seconds": 0} for line in lines] == [line | {"seconds": 0} for line in resumed]
    assert len({line["train_loss"] for line in lines}) == 6


def test_text_encoders_learn_and_resume(tmp_path: Path) -> None:
    said = options(steps=4)
    whole = tiny_trainee(text_encoders=True)
    before = learned(whole)
    run(tmp_path / "whole", said, whole)
    moved = {name for name, value in learned(whole).items() if not torch.equal(value, before[name])}
    assert any(name.startswith("text_encoders.") for name in moved) and any("denoiser" in name for name in moved)
    again = tiny_trainee(text_encoders=True)
    run(tmp_path / "whole", said, again, tmp_path / "whole" / "checkpoints" / "checkpoint-2")
    assert same(learned(whole), learned(again))


def test_a_finished_run_resumed_from_its_last_checkpoint_is_what_it_was(tmp_path: Path) -> None:
    said, whole, again = options(ema=0.5), tiny_trainee(), tiny_trainee()
    run(tmp_path, said, whole)
    run(tmp_path, said, again, tmp_path / "checkpoints" / "checkpoint-6")
    assert same(learned(whole), learned(again))


def test_accumulated_small_batches_are_one_large_batch(tmp_path: Path) -> None:
    small, large = tiny_trainee(), tiny_trainee()
    # One loss whatever the noise: what is compared is the mean over the pictures, which both see once.
    for trainee in (small, large):
        family: Any = trainee.family
        family.losses = lambda denoiser, latents, conditions, generator, loss, kept: (
            denoiser(latents, torch.full((len(latents),), 300), conditions["encoder_hidden_states"], return_dict=False)[
                0
            ]
            .square()
            .mean((1, 2, 3))
        )

    class OneSize(Memory):
        def bucket(self, index: int) -> tuple[int, int]:
            return (16, 16)

        def __len__(self) -> int:
            return 2

    said = {"steps": 1, "warmup": 0, "schedule": "constant", "max_grad_norm": 0}
    one = run(tmp_path / "s", options(batch_size=1, gradient_accumulation=2, **said), small, data=OneSize(small.family))
    other = run(tmp_path / "l", options(batch_size=2, **said), large, data=OneSize(large.family))
    for key in ("train_loss", "gradient_norm"):
        # Sums of float32 in another order.
        assert one.lines[0][key] == pytest.approx(other.lines[0][key], rel=1e-4)


def test_gradient_checkpointing_changes_no_number(tmp_path: Path) -> None:
    plain, saving = tiny_trainee(), tiny_trainee()
    saving.checkpoint_gradients()
    for name, trainee in (("plain", plain), ("saving", saving)):
        run(tmp_path / name, options(steps=3), trainee)
    assert same(learned(plain), learned(saving))


def test_the_average_is_seen_and_kept_and_training_goes_on_without_it(tmp_path: Path) -> None:
    """The averaged run trains as the plain one does; what is looked at and what stays is the average."""
    seen: dict[int, dict[str, Tensor]] = {}
    trained: dict[int, dict[str, Tensor]] = {}
    averaged, plain = tiny_trainee(), tiny_trainee()
    run(tmp_path / "a", options(ema=0.6), averaged,
        on_step=[Every(lambda step, trainee, log: seen.update({step: learned(trainee)}), 1)])  # fmt: skip
    run(tmp_path / "b", options(), plain,
        on_step=[Every(lambda step, trainee, log: trained.update({step: learned(trainee)}), 1)])  # fmt: skip
    name = next(iter(trained[0]))
    assert torch.equal(seen[0][name], trained[0][name])
    # Multiplied by 0.4 and divided by it again: two roundings.
    torch.testing.assert_close(seen[1][name], trained[1][name], rtol=5e-7, atol=0)
    weights = torch.tensor([0.6 ** (6 - step) for step in range(1, 7)])
    expected = sum(weight * trained[step][name] for step, weight in enumerate(weights, 1)) / weights.sum()
    # Two orders of summing six float32 numbers of this size.
    torch.testing.assert_close(seen[6][name], expected, rtol=1e-5, atol=1e-6)
    assert same(seen[6], learned(averaged)) and not same(seen[6], trained[6])
    assert same(load_file(tmp_path / "a/checkpoints/checkpoint-6/trained.safetensors"),
                load_file(tmp_path / "b/checkpoints/checkpoint-6/trained.safetensors"))  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    whole, cut, again = tiny_trainee(), tiny_trainee(), tiny_trainee()
    said = options(save_every=100)
    run(tmp_path / "whole", said, whole)

    class Signalled(Memory):
        def batch(self, indices: list[int]) -> Any:
            if len(self.asked) == 2:
                os.kill(os.getpid(), number)
            return super().batch(indices)

    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=r"after step 3 of 6, which checkpoint-3 holds.*resume=auto output="):
        run(tmp_path / "cut", said, cut, data=Signalled(cut.family))
    assert signal.getsignal(number) is before
    run(tmp_path / "cut", said, again, RunDirectory(tmp_path / "cut").newest_checkpoint())
    assert same(learned(whole), learned(again))


def test_a_damaged_checkpoint_is_passed_over_and_old_ones_go(tmp_path: Path) -> None:
    said = options(save_every=1, save_total_limit=3)
    run(tmp_path, said, tiny_trainee())
    home = RunDirectory(tmp_path)
    assert sorted(path.name for path in home.checkpoints.iterdir()) == [f"checkpoint-{step}" for step in (4, 5, 6)]
    file = home.checkpoints / "checkpoint-6" / "optimizer.safetensors"
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 1
    file.write_bytes(damaged)
    (home.checkpoints / "checkpoint-5" / "manifest.json").unlink()
    told: list[str] = []
    found = home.newest_checkpoint(told.append)
    assert found is not None and found.name == "checkpoint-4" and len(told) == 1


def test_callbacks_come_when_due_and_find_modules_at_rest(tmp_path: Path) -> None:
    seen: list[tuple[str, int, bool]] = []
    trainee = tiny_trainee()
    both = [
        Every(lambda step, trainee, log: seen.append(("often", step, trainee.denoiser.training)), 4),
        Every(lambda step, trainee, log: seen.append(("ends", step, trainee.denoiser.training))),
    ]
    run(tmp_path, options(), trainee, on_step=both)
    assert [(name, step) for name, step, _ in seen] == [
        ("often", 0), ("ends", 0), ("often", 4), ("often", 6), ("ends", 6),
    ]  # fmt: skip
    assert not any(training for *_, training in seen)


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux-dev"])
def test_every_family_learns(tmp_path: Path, kind: str) -> None:
    trainee = tiny_trainee(kind)
    before = learned(trainee)
    log = run(tmp_path, options(steps=3), trainee)
    assert len(log.lines) == 3 and log.lines[-1]["train_loss"] is not None
    assert not any(torch.equal(before[name], value) for name, value in learned(trainee).items())
