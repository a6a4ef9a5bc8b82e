"""The run that all recipes for image models share: from settings and data to a finished run directory."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from orthotune.errors import OrthotuneError
from orthotune.files.atomic import atomic_write
from orthotune.files.json_file import read_json, write_json
from orthotune.formats.adapter_file import CONFIG_NAME, WEIGHTS_NAME
from orthotune.image.adapter.model_spec import ModelSpec, describe
from orthotune.image.adapter.saved_adapter import save_adapter
from orthotune.image.families.family import Family
from orthotune.image.loop.accelerator import make_accelerator, start_trackers, storage_dtype
from orthotune.image.loop.loop import Every, Hooks, train
from orthotune.image.loop.optimizer import check_optimizer
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.samples import Sampler, Samples, draw_progress, read_samples
from orthotune.image.loop.trainee import Trainee
from orthotune.image.training_sheet import draw_training
from orthotune.operations.adapter import HINT_ENCODER
from orthotune.operations.lora_file import PIPELINE_WEIGHTS
from orthotune.recipes.image_job import (
    ImageJob,
    adapt,
    divided,
    held_out_counts,
    open_model,
    open_quantized,
    swap_blocks,
)
from orthotune.recipes.image_measurements import Measurements
from orthotune.recipes.image_settings import ImageSettings
from orthotune.runs import adapters, processes
from orthotune.runs.checkpoint_on_signal import Stopped
from orthotune.runs.curve import HELD_OUT, draw_scores
from orthotune.runs.directory import RunDirectory, step_of
from orthotune.runs.metrics_log import MetricsLog, read_lines
from orthotune.runs.optional_images import not_written
from orthotune.runs.progress import StepBar
from orthotune.runs.quiet import quiet
from orthotune.runs.record import RunRecord, WeightChange, device_name, versions
from orthotune.runs.sharded_model import is_sharded
from orthotune.runs.slow_dtype import slow_dtype_note
from orthotune.text.weight_pairs import weight_change

Say = Callable[[str], None]
ADAPTER, MODEL, SHEET, CURVE = "adapter", "model", "samples.png", "curve.png"
TRAINING = "training.png"
#: Settings that may be larger when a run is resumed, which makes it longer.
GROWING = ("steps",)
#: What a checkpoint holds of an adapter.
ADAPTER_FILES = (CONFIG_NAME, WEIGHTS_NAME, PIPELINE_WEIGHTS, HINT_ENCODER)


def run_image(settings: ImageSettings, job: ImageJob, say: Say = print, bar: bool = True) -> RunRecord:
    """Train and return the record, which is also in ``run.json`` of the output.

    The output contains ``adapter`` (or ``model``), ``samples``, ``metrics.jsonl``, ``curve.png``, ``samples.png`` and
    checkpoints, each of which holds the adapter, too. A run that was interrupted and resumed ends with the same
    parameters as an uninterrupted run. A signal, or a file ``stop-now`` in the output, leaves a checkpoint, the adapter
    and ``stopped.json``, a record of what was done.

    Args:
        settings: of the run.
        job: the parts of the recipe.
        say: gets messages.
        bar: show progress bars.

    Raises:
        OutputError: the output cannot be written, or contains another run.
        RecipeError, DataError, TargetError, BlockSizeError: settings that cannot be used; raised before training.
        TrainingError: too many steps with a non-finite loss or gradient.
        Stopped: by a signal, after a checkpoint was written; a ``KeyboardInterrupt``.
    """
    check_optimizer(settings.optimizer)
    options = LoopOptions.of(settings)
    accelerator = make_accelerator(options, settings.output)
    first = bool(accelerator.is_main_process)
    run_dir = RunDirectory(settings.output)
    checkpoint = processes.from_main(lambda: run_dir.open(settings.claimed(), settings.resume, say, GROWING))
    if finished := processes.from_main(lambda: read_json(run_dir.record) if run_dir.finished else None):
        if first:
            say(f"{run_dir.path} contains this run, which is finished.")
        return RunRecord(**finished)
    processes.require_visible(checkpoint)
    try:
        with quiet():
            return _Run(settings, job, run_dir, accelerator, say if first else lambda _: None).train(checkpoint, bar)
    finally:
        if first:
            run_dir.drop_if_empty()
        accelerator.end_training()


@dataclass
class _Outcome:
    """What the record of a run says beside its settings."""

    measured: Measurements
    notes: list[str]
    counts: tuple[int, int]
    began: float


class _Run:
    """A run with an open directory."""

    def __init__(
        self, settings: ImageSettings, job: ImageJob, run_dir: RunDirectory, accelerator: Any, say: Say
    ) -> None:
        self.settings, self.job, self.run_dir, self.accelerator, self.say = settings, job, run_dir, accelerator, say
        self.first = bool(accelerator.is_main_process)

    def train(self, checkpoint: Path | None, bar: bool) -> RunRecord:
        settings, job, began = self.settings, self.job, time.monotonic()
        family = open_quantized(settings, self.accelerator.device)
        swap_blocks(family, settings, self.accelerator)
        # The main process first: the other processes use the images and encodings that it writes.
        with self.accelerator.main_process_first():
            data, held = divided(settings, job.data(family, self.run_dir.path))
        notes = adapt(family, settings, job)
        if family.swap is not None:
            family.swap.place()
        if settings.rest_encoders:
            family.rest_encoders()
        notes += [f"Held out, not trained on: {held_out_counts(held)}."] if held else []
        torch.manual_seed(settings.seed)
        trainee = Trainee(family, job.hint_encoder(family) if job.hint_encoder else None)
        if settings.gradient_checkpointing:
            trainee.checkpoint_gradients()
        trained, total = adapters.trainable(trainee)
        notes.append(f"{settings.method}: {trained:,} of {total:,} parameters are trained, {settings.steps} steps.")
        notes += filter(None, [settings.rate_factors.note(trainee, settings.learning_rate)])
        if not job.scores and "old" not in held:
            notes.append(
                "Forgetting is not measured in this run; `orthotune evaluate drift` compares images afterwards."
            )
        notes += self._slow_precision()
        self.say("\n".join(notes))
        if self.first:
            self.run_dir.claim(settings.claimed())
            draw_training(data, self.run_dir.path / TRAINING)
        start_trackers(self.accelerator, settings.trackers, settings.record())
        measured = Measurements(settings, job, held, trainee, self.accelerator.device)
        measured.load(checkpoint)
        outcome = _Outcome(measured, notes, (trained, total), began)
        shown = StepBar(settings.method, bar and self.first)
        hooks = Hooks(
            self._callbacks(trainee, measured, shown), measured.ends, partial(self._add, trainee, measured),
            measured.finish,
        )  # fmt: skip
        try:
            log = train(
                trainee, data, LoopOptions.of(settings), self.run_dir, checkpoint, self.say,
                accelerator=self.accelerator, hooks=hooks, bar=shown,
            )  # fmt: skip
        except Stopped as stopped:
            if self.first:
                try:
                    self._leave(trainee, outcome, str(stopped))
                except OrthotuneError as fault:  # as on a full disk: the checkpoint is what matters
                    self.say(str(fault))
            raise
        notes += measured.notes(settings.steps)
        for note in measured.notes(settings.steps):
            self.say(note)
        measured.restore(trainee)
        kept = MODEL if settings.method == "full" else ADAPTER
        if self.first:
            self._save(trainee, self.run_dir.path / kept)
        done = measured.reached.step if measured.reached else settings.steps
        record = self._record(trainee, log, outcome, kept, done)
        if self.first:
            write_json(self.run_dir.record, record.model_dump(mode="json"))
        return record

    def _slow_precision(self) -> list[str]:
        precision = self.settings.mixed_precision
        note = slow_dtype_note(
            storage_dtype(precision), self.accelerator.device.type, f"mixed_precision={precision}", "mixed_precision=no"
        )
        return [note] if note else []

    def _callbacks(self, trainee: Trainee, measured: Measurements, bar: StepBar) -> tuple[Every, ...]:
        settings, family = self.settings, trainee.family
        prompts = settings.sample_prompts or self.job.prompts
        sampler = self.job.sampler(trainee) if self.job.sampler else self._sampler(family)
        samples = Samples(
            self.run_dir.path, prompts, settings.sample_seeds, sampler, self.first,
            # The sampler of a recipe may depend on the place of a prompt among all.
            chunk=None if self.job.sampler else settings.batch_size,
            show=lambda done, total: bar.aside(f"samples {done}/{total}"), frame_rate=trainee.family.frame_rate,
        )  # fmt: skip
        found = (Every(samples, settings.sample_every or max(1, settings.steps // 4), samples=True),)
        return (*found, Every(measured, measured.every)) if self.job.scores or measured.loss else found

    def _add(self, trainee: Trainee, measured: Measurements, checkpoint: Path) -> None:
        """Write the adapter and the best parameters until now into a checkpoint."""
        measured.save(checkpoint)
        if self.settings.method != "full" and not is_sharded(trainee):
            self._write(trainee, checkpoint)

    def _leave(self, trainee: Trainee, outcome: _Outcome, message: str) -> None:
        """Leave the adapter of the newest checkpoint and a record in the directory of a run that a signal stopped."""
        checkpoint = self.run_dir.newest_checkpoint()
        if checkpoint is None or not (holds := [one for one in checkpoint.iterdir() if one.name in ADAPTER_FILES]):
            return
        with atomic_write(self.run_dir.path / ADAPTER) as beside:
            beside.mkdir()
            for file in holds:
                shutil.copyfile(file, beside / file.name)
        log = MetricsLog(None)
        log.lines = read_lines(self.run_dir.metrics)
        outcome.notes.append(message)
        record = self._record(trainee, log, outcome, ADAPTER, step_of(checkpoint), finished=False)
        write_json(self.run_dir.stopped, record.model_dump(mode="json"))

    def _sampler(self, family: Family) -> Sampler:
        side = self.settings.resolution or family.native_size

        def sample(prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
            return family.generate(
                prompts, seeds, steps=self.settings.sample_steps, guidance=self.settings.guidance, height=side,
                width=side, batch_size=self.settings.batch_size, frames=self.settings.frames,
            )  # fmt: skip

        return sample

    def _save(self, trainee: Trainee, folder: Path) -> None:
        with atomic_write(folder) as beside:
            beside.mkdir()
            self._write(trainee, beside)

    def _write(self, trainee: Trainee, folder: Path) -> None:
        """Write what was trained into an existing folder."""
        if self.settings.method == "full":
            trainee.family.pipeline.save_pretrained(folder)
        else:
            family: Any = trainee.family
            save_adapter(family, folder)
            self._describe(family, folder)
        if self.job.keep:
            self.job.keep(trainee, folder)

    def _describe(self, family: Family, folder: Path) -> None:
        """Say in the header of the adapter's file what the adapter is."""
        settings, side = self.settings, self.settings.resolution or family.native_size
        newest = read_samples(self.run_dir.path)[-1:]
        thumbnail = self.run_dir.path / newest[0]["file"] if newest else None
        spec = ModelSpec(
            family.generation, settings.method, settings.model, self.job.trigger,
            None if settings.buckets else (side, side),
            thumbnail if thumbnail is not None and thumbnail.is_file() else None,
        )  # fmt: skip
        for name in (WEIGHTS_NAME, PIPELINE_WEIGHTS):
            if (folder / name).is_file():
                describe(folder / name, spec)

    def _record(
        self, trainee: Trainee, log: MetricsLog, outcome: _Outcome, kept: str, steps: int, finished: bool = True
    ) -> RunRecord:
        settings, path, notes = self.settings, self.run_dir.path, outcome.notes
        artifacts = {kept: kept, "curve": CURVE, "metrics": "metrics.jsonl"}
        if self.first:
            title = f"{settings.method}, learning rate {settings.learning_rate:g}"
            scores = [name for name in outcome.measured.names if name not in HELD_OUT]
            draw = partial(draw_scores, log.lines, path / CURVE, title, scores)
            if missing := not_written(draw, CURVE):
                notes.append(missing)
                self.say(missing)
                del artifacts["curve"]
            artifacts |= {"samples": SHEET} if draw_progress(path, path / SHEET) else {}
            artifacts |= {"training": TRAINING} if (path / TRAINING).is_file() else {}
        if warning := log.first("clipping"):
            notes.append(warning)
        return RunRecord(
            recipe=settings.recipe,
            method=settings.method,
            settings=settings.record(),
            versions=versions(),
            device=device_name(),
            trainable_parameters=outcome.counts[0],
            total_parameters=outcome.counts[1],
            steps=steps,
            planned_steps=None if finished else settings.steps,
            skipped_steps=sum("left_out" in line for line in log.lines),
            weights=self._weights(trainee) if finished else WeightChange(),
            seconds=round(time.monotonic() - outcome.began, 1),
            train_seconds=round(log.last("seconds") or 0.0, 1),
            notes=notes,
            artifacts=artifacts,
            **outcome.measured.results(log),
        )

    def _weights(self, trainee: Trainee) -> WeightChange:
        full = self.settings.method == "full"
        if self.settings.swap_blocks:
            return WeightChange()  # the weights are not where the rotations are
        before = open_model(self.settings, self.accelerator.device).denoiser if full else None
        return weight_change(trainee.denoiser, before)
