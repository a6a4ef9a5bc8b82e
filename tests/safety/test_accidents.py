"""What happens to a finetuning run: signals, a full disk, damaged checkpoints, numbers that are not finite."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from orthotune.cli.failures import explain
from orthotune.errors import OutputError, TrainingError
from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.checkpoint_manifest import check
from orthotune.runs.checkpoint_on_signal import Stopped
from tests.safety.conftest import job_on
from tests.support.small_disk import fill, small_disk

Job = dict[str, Any]


class _At(TrainerCallback):
    """Does something to the model before a step."""

    def __init__(self, *steps: int, do: Callable[[Any], object]) -> None:
        self.steps, self.do = steps, do

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step + 1 in self.steps:
            self.do(seen["model"])


def _run(job: Job, *callbacks: TrainerCallback, said: list[str] | None = None, **changes: Any) -> Any:
    heard: list[str] = [] if said is None else said
    return sft.run(SFTSettings(**(job | changes)), say=heard.append, callbacks=callbacks, bar=False)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def _equal(one: Path, other: Path) -> bool:
    a, b = _weights(one), _weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job's run directory when nothing happens to it."""
    output = tmp_path_factory.mktemp("whole") / "run"
    _run(job_on(files, output))
    return output


def _checkpoints(job: Job) -> list[str]:
    return sorted(path.name for path in (job["output"] / "checkpoints").iterdir())


# Signals.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_a_checkpoint_and_says_how_to_go_on(job: Job, number: signal.Signals, whole: Path) -> None:
    said: list[str] = []
    handlers = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match=rf"Stopped by {number.name} after step 5 of 8.*checkpoint-5.*resume=auto") as end:
        _run(job, _At(5, do=lambda _: signal.raise_signal(number)), said=said)
    assert end.value.number == number and str(job["output"]) in str(end.value)
    assert any(number.name in words and "a second signal stops at once" in words for words in said)
    assert check(job["output"] / "checkpoints" / "checkpoint-5") == 5
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == handlers
    _run(job, resume="auto")
    assert _equal(job["output"], whole)


def test_a_second_signal_does_not_wait(job: Job) -> None:
    def twice(_: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped, match="before the checkpoint was saved"):
        _run(job, _At(4, do=twice))
    assert _checkpoints(job) == ["checkpoint-2"]


def test_a_signal_before_training_ends_at_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sft.load_model

    def loading(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(sft, "load_model", loading)
    with pytest.raises(Stopped, match="Stopped by SIGTERM"):
        _run(job)
    assert not job["output"].exists()


# The end of a run that had been saved already.


def test_a_run_killed_after_its_last_checkpoint_makes_no_further_step(job: Job, whole: Path, tmp_path: Path) -> None:
    _run(job)
    (job["output"] / "run.json").unlink()  # as if killed before it was written
    os.replace(job["output"] / "adapter", tmp_path / "gone")
    record = _run(job, resume="auto")
    assert record.steps == 8
    assert _equal(job["output"], whole)
    lines = [json.loads(line) for line in (job["output"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(9))


# Damaged checkpoints.


def test_a_flipped_bit_in_the_last_checkpoint_is_told_and_the_one_before_used(job: Job, whole: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(job, _At(6, do=_interrupt))
    path = job["output"] / "checkpoints" / "checkpoint-4" / "optimizer.pt"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    said: list[str] = []
    _run(job, resume="auto", said=said)
    told = next(words for words in said if "checkpoint-4" in words)
    assert "another checksum of optimizer.pt" in told and told.endswith("The one before it is used.")
    assert _equal(job["output"], whole)


def test_checkpoints_hold_no_pickle_of_code(job: Job) -> None:
    _run(job)
    assert _checkpoints(job) == ["checkpoint-6", "checkpoint-8"]
    for folder in (job["output"] / "checkpoints").iterdir():
        assert not (folder / "training_args.bin").exists()
        for path in folder.glob("*.pt*"):
            # what resuming reads, as it reads it; rng_state.pth holds numpy's state beside
            with torch.serialization.safe_globals(_numpy()):
                torch.load(path, weights_only=True)


def _numpy() -> list[Any]:
    import numpy as np

    core = np._core.multiarray
    return [core._reconstruct, np.ndarray, np.dtype, type(np.dtype(np.uint32)), np.dtypes.UInt32DType]


def _interrupt(_: Any) -> None:
    raise KeyboardInterrupt


# A disk without space.


def test_a_full_disk_stops_the_run_and_keeps_the_checkpoint_before(job: Job, whole: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, 4 << 20):
        job["output"] = disk / "run"
        with pytest.raises(OutputError, match="checkpoint of step 4 could not be written.*checkpoint-2 is kept"):
            _run(job, _At(3, do=lambda _: fill(disk)))
        assert _checkpoints(job) == ["checkpoint-2"] and check(job["output"] / "checkpoints" / "checkpoint-2") == 2
        (disk / "filler").unlink()
        _run(job, resume="auto")
        assert _equal(job["output"], whole)


@pytest.mark.parametrize("size", [12_000, 50_000])
def test_a_write_that_the_system_refuses(job: Job, size: int) -> None:
    # the smaller limit meets safetensors' writer, the larger one torch's, which words its errors otherwise
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    begin = _At(3, do=lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard)))
    try:
        with pytest.raises(OutputError, match="checkpoint of step 4 could not be written.*checkpoint-2 is kept"):
            _run(job, begin)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert _checkpoints(job) == ["checkpoint-2"]


def test_a_run_may_go_on_without_a_checkpoint(job: Job, whole: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    begin = _At(3, do=lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, hard)))
    end = _At(5, do=lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)))
    said: list[str] = []
    try:
        _run(job, begin, end, said=said, on_failed_save="go-on", save_total_limit=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert any("step 4 could not be written" in words and "Training goes on" in words for words in said)
    assert _checkpoints(job) == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]
    assert _equal(job["output"], whole)


# Numbers that are not finite.


def _broken(layer: str, *, gradient: bool = False) -> Callable[[Any], None]:
    """NaN out of a layer, or into its gradient, in the next step only."""

    def do(model: Any) -> None:
        module = model.base_model.model.get_submodule(layer)

        def spoil(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor | None:
            if not module.training:
                return None
            hook.remove()
            if gradient:
                output.register_hook(lambda grad: grad * float("inf"))
                return output
            return output * float("nan")

        hook = module.register_forward_hook(spoil)

    return do


@pytest.mark.parametrize("gradient", [False, True])
def test_a_step_that_is_not_finite_is_left_out_and_counted(job: Job, gradient: bool) -> None:
    seen: dict[int, list[torch.Tensor]] = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **found: Any) -> None:
            trained = [p.detach().clone() for p in found["model"].parameters() if p.requires_grad]
            seen[state.global_step] = trained

    said: list[str] = []
    record = _run(job, _At(3, do=_broken("model.layers.1.mlp.up_proj", gradient=gradient)), Watch(), said=said)
    assert all(torch.equal(a, b) for a, b in zip(seen[2], seen[3], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(seen[3], seen[4], strict=True))
    kind = "gradient" if gradient else "loss"
    assert any(f"the {kind} of step 3 is NaN or infinite" in words and "1 of at most 10" in words for words in said)
    assert any("1 steps were skipped" in note for note in record.notes)
    lines = [json.loads(line) for line in (job["output"] / "metrics.jsonl").read_text().splitlines()]
    # a loss that is not finite is written as none, not as some other number
    assert [line["step"] for line in lines if line["step"] and line["train_loss"] is None] == ([] if gradient else [3])
    assert all(torch.isfinite(weight).all() for weight in _weights(job["output"]).values())


def test_a_run_that_diverged_stops_with_the_layer_and_the_last_good_checkpoint(job: Job) -> None:
    def spoil(model: Any) -> None:
        model.base_model.model.model.layers[1].mlp.down_proj.base_layer.weight.data[0, 0] = float("nan")

    with pytest.raises(
        TrainingError, match=r"loss of step 7.*layers\.1\.mlp\.down_proj.*3 such steps.*checkpoint-6 is kept"
    ):
        _run(job, _At(5, do=spoil), max_skipped=2)
    check(job["output"] / "checkpoints" / "checkpoint-6")  # of steps that changed nothing


def test_the_count_goes_on_after_a_resume(job: Job) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(job, _At(2, do=_broken("model.layers.0.mlp.up_proj")), _At(6, do=_interrupt), max_skipped=1)
    with pytest.raises(TrainingError, match="loss of step 7.*2 such steps.*max_skipped is 1"):
        _run(job, _At(7, do=_broken("model.layers.0.mlp.up_proj")), max_skipped=1, resume="auto")


def test_parameters_that_are_not_finite_are_never_saved(job: Job) -> None:
    def spoil(model: Any) -> None:
        next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("inf")

    said: list[str] = []
    with pytest.raises(TrainingError, match="checkpoint-4 is kept"):
        _run(job, _At(5, do=spoil), max_skipped=3, said=said)
    assert _checkpoints(job) == ["checkpoint-2", "checkpoint-4"]
    assert any("Step 6: " in words and "holds NaN or infinity, so no checkpoint is written" in words for words in said)


def test_an_overflow_that_the_scaler_meets_is_not_counted(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 needs a GPU; its scaler does not, and is the part that skips."""
    real, made = sft.sft_trainer.build_trainer, []

    def build(*args: Any, **options: Any) -> Any:
        trainer = real(*args, **options)
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        made.append(trainer)
        return trainer

    monkeypatch.setattr(sft.sft_trainer, "build_trainer", build)
    _run(job, _At(3, do=_broken("model.layers.1.mlp.up_proj", gradient=True)), max_skipped=0)
    assert made[0].skipped == [] and made[0].accelerator.scaler.get_scale() == 2.0**9
    with pytest.raises(TrainingError, match="loss of step 3"):  # a loss has no scale yet: no overflow of the scaler's
        broken = _At(3, do=_broken("model.layers.1.mlp.up_proj"))
        _run(job, broken, max_skipped=0, output=job["output"].with_name("other"))


def test_a_series_near_divergence_is_told_while_all_is_finite(job: Job) -> None:
    said: list[str] = []
    series = {"rotation": {"use_cayley_neumann": True}, "learning_rate": 0.1, "eval_every": 2}
    record = _run(job, said=said, **series)
    assert any("The series is near divergence: skew norm" in words for words in said)
    assert not any("skipped" in note for note in record.notes)


def test_the_command_line_ends_as_the_signal_says() -> None:
    assert explain(Stopped(signal.SIGTERM, "Stopped by SIGTERM.")) == ("Stopped by SIGTERM.", 143)
    assert explain(Stopped(signal.SIGINT, "Stopped by SIGINT.")) == ("Stopped by SIGINT.", 130)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_log_that_cannot_be_written_is_told_once_and_catches_up(job: Job, tmp_path: Path) -> None:
    said, log, before = list[str](), job["output"] / "metrics.jsonl", tmp_path / "before"

    def full(_: Any) -> None:
        log.rename(before)
        log.symlink_to("/dev/full")

    _run(job, _At(3, do=full), _At(6, do=lambda _: before.rename(log)), said=said, on_failed_save="go-on")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(9))
    assert sum("No space left on device" in words and "kept until there is room" in words for words in said) == 1
    with pytest.raises(OutputError, match="writing .*metrics.jsonl. Found: No space left on device.*resume=auto"):
        log = tmp_path / "other" / "metrics.jsonl"
        _run(job, _At(3, do=full), output=log.parent)
