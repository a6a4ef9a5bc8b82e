"""The run that all recipes for image models share: from settings and data to a finished run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from orthotune.files.atomic import atomic_write
from orthotune.files.json_file import read_json, write_json
from orthotune.image.adapter.saved_adapter import save_adapter
from orthotune.image.families.family import Family
from orthotune.image.loop.accelerator import make_accelerator, start_trackers
from orthotune.image.loop.loop import Every, train
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.samples import Sampler, Samples, draw_progress
from orthotune.image.loop.trainee import Trainee
from orthotune.recipes.image_job import ImageJob, adapt, open_model
from orthotune.recipes.image_settings import ImageSettings
from orthotune.runs import adapters, processes
from orthotune.runs.curve import draw_scores
from orthotune.runs.directory import RunDirectory
from orthotune.runs.metrics_log import MetricsLog
from orthotune.runs.optional_images import not_written
from orthotune.runs.quiet import quiet
from orthotune.runs.record import RunRecord, device_name, versions
from orthotune.text.weight_pairs import weight_change

Say = Callable[[str], None]
ADAPTER, MODEL, SHEET, CURVE = "adapter", "model", "samples.png", "curve.png"


def run_image(settings: ImageSettings, job: ImageJob, say: Say = print, bar: bool = True) -> RunRecord:
    """Train and return the record, which is also in ``run.json`` of the output.

    The output contains ``adapter`` (or ``model``), ``samples``, ``metrics.jsonl``, ``curve.png``, ``samples.png`` and
    checkpoints. A run that was interrupted and resumed ends with the same parameters as an uninterrupted run.

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
    options = LoopOptions.of(settings)
    accelerator = make_accelerator(options, settings.output)
    first = bool(accelerator.is_main_process)
    run_dir = RunDirectory(settings.output)
    checkpoint = processes.from_main(lambda: run_dir.open(settings.claimed(), settings.resume, say))
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


class _Run:
    """A run with an open directory."""

    def __init__(
        self, settings: ImageSettings, job: ImageJob, run_dir: RunDirectory, accelerator: Any, say: Say
    ) -> None:
        self.settings, self.job, self.run_dir, self.accelerator, self.say = settings, job, run_dir, accelerator, say
        self.first = bool(accelerator.is_main_process)
        self.scored: tuple[str, ...] = ()

    def train(self, checkpoint: Path | None, bar: bool) -> RunRecord:
        settings, job, began = self.settings, self.job, time.monotonic()
        family = open_model(settings, self.accelerator.device)
        # The main process first: the other processes use the images and encodings that it writes.
        with self.accelerator.main_process_first():
            data = job.data(family, self.run_dir.path)
        notes = adapt(family, settings, job)
        if settings.rest_encoders:
            family.rest_encoders()
        torch.manual_seed(settings.seed)
        trainee = Trainee(family, job.hint_encoder(family) if job.hint_encoder else None)
        if settings.gradient_checkpointing:
            trainee.checkpoint_gradients()
        trained, total = adapters.trainable(trainee)
        notes.append(f"{settings.method}: {trained:,} of {total:,} parameters are trained, {settings.steps} steps.")
        if not job.scores:
            notes.append(
                "Forgetting is not measured in this run; `orthotune evaluate drift` compares images afterwards."
            )
        self.say("\n".join(notes))
        if self.first:
            self.run_dir.claim(settings.claimed())
        start_trackers(self.accelerator, settings.trackers, settings.record())
        log = train(
            trainee, data, LoopOptions.of(settings), self.run_dir, checkpoint, self.say, accelerator=self.accelerator,
            on_step=self._callbacks(trainee), title=settings.method, bar=bar,
        )  # fmt: skip
        kept = MODEL if settings.method == "full" else ADAPTER
        if self.first:
            self._save(trainee, self.run_dir.path / kept)
        record = self._record(trainee, log, notes, kept, (trained, total), time.monotonic() - began)
        if self.first:
            write_json(self.run_dir.record, record.model_dump(mode="json"))
        return record

    def _callbacks(self, trainee: Trainee) -> list[Every]:
        settings, family = self.settings, trainee.family
        prompts = settings.sample_prompts or self.job.prompts
        sampler = self.job.sampler(trainee) if self.job.sampler else self._sampler(family)
        samples = Samples(self.run_dir.path, prompts, settings.sample_seeds, sampler, self.first)

        def score(step: int, trainee: Trainee, log: MetricsLog) -> None:
            values = {name: value for one in self.job.scores for name, value in one(step, family).items()}
            self.scored = tuple(values)
            log.append({"step": step, "seconds": log.last("seconds") or 0.0, **values})

        found = [Every(samples, settings.sample_every or max(1, settings.steps // 4))]
        return found + ([Every(score, settings.eval_every)] if self.job.scores else [])

    def _sampler(self, family: Family) -> Sampler:
        side = self.settings.resolution or family.native_size

        def sample(prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
            return family.generate(
                prompts, seeds, steps=self.settings.sample_steps, guidance=self.settings.guidance, height=side,
                width=side, batch_size=self.settings.batch_size,
            )  # fmt: skip

        return sample

    def _save(self, trainee: Trainee, folder: Path) -> None:
        with atomic_write(folder) as partial:
            if self.settings.method == "full":
                trainee.family.pipeline.save_pretrained(partial)
            else:
                family: Any = trainee.family
                save_adapter(family, partial)
            if self.job.keep:
                self.job.keep(trainee, partial)

    def _record(
        self, trainee: Trainee, log: MetricsLog, notes: list[str], kept: str, counts: tuple[int, int], seconds: float
    ) -> RunRecord:
        settings, path = self.settings, self.run_dir.path
        artifacts = {kept: kept, "curve": CURVE, "metrics": "metrics.jsonl"}
        if self.first:
            title = f"{settings.method}, learning rate {settings.learning_rate:g}"
            if missing := not_written(lambda: draw_scores(log.lines, path / CURVE, title, self.scored), CURVE):
                notes.append(missing)
                self.say(missing)
                del artifacts["curve"]
            artifacts |= {"samples": SHEET} if draw_progress(path, path / SHEET) else {}
        before = open_model(settings, self.accelerator.device).denoiser if settings.method == "full" else None
        if warning := log.first("clipping"):
            notes.append(warning)
        return RunRecord(
            recipe=settings.recipe,
            method=settings.method,
            settings=settings.record(),
            versions=versions(),
            device=device_name(),
            trainable_parameters=counts[0],
            total_parameters=counts[1],
            steps=settings.steps,
            scores_before={name: log.first(name) for name in self.scored},
            scores_after={name: log.last(name) for name in self.scored},
            skipped_steps=sum("left_out" in line for line in log.lines),
            weights=weight_change(trainee.denoiser, before),
            seconds=round(seconds, 1),
            train_seconds=round(log.last("seconds") or 0.0, 1),
            notes=notes,
            artifacts=artifacts,
        )
