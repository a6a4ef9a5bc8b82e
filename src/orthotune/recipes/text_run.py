"""What every recipe for language models shares: from settings and data to a finished run directory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import TrainerCallback

from orthotune.files.atomic import atomic_write, write_text
from orthotune.files.json_file import read_json, read_json_list, write_json
from orthotune.recipes.model_card import model_card
from orthotune.recipes.text_job import TextJob, TrainerInputs, adapter_config, check_options, continued, model_note
from orthotune.recipes.text_settings import TextSettings
from orthotune.runs import adapters, engines, processes
from orthotune.runs.checkpoint_on_signal import StopOnSignal
from orthotune.runs.clipping import GradientLog
from orthotune.runs.directory import RunDirectory, step_of
from orthotune.runs.failed_save import kept as kept_checkpoint
from orthotune.runs.metrics_log import CHANGES, MetricsLog
from orthotune.runs.optional_images import not_written
from orthotune.runs.progress import ProgressBar
from orthotune.runs.quiet import quiet
from orthotune.runs.record import RunRecord, WeightChange, device_name, versions
from orthotune.runs.requests import Requests
from orthotune.runs.sharded_model import is_sharded
from orthotune.runs.slow_dtype import slow_dtype_note
from orthotune.text.best_parameters import BestParameters
from orthotune.text.causal_model import choose_dtype
from orthotune.text.diagnosis_log import DiagnosisLog
from orthotune.text.early_stopping import EarlyStopping, Reached, StopRules
from orthotune.text.evaluation_cost import cost_sentence
from orthotune.text.requested import Requested
from orthotune.text.samples import default_prompts, samples, samples_now
from orthotune.text.step_log import DomainLosses, Measure, StepLog
from orthotune.text.trainer import RunTrainer, TrainerParts
from orthotune.text.trainer_options import MUON, choose_attention
from orthotune.text.weight_pairs import weight_change
from orthotune.tuner.merge_aware import merge_aware

Say = Callable[[str], None]
Callbacks = Iterable[TrainerCallback]
ADAPTER, MODEL, CURVE, SAMPLES, CARD = "adapter", "model", "curve.png", "samples.json", "README.md"
#: Settings that may be larger when a run is resumed, which makes it longer.
GROWING = ("steps", "epochs")
#: Checkpoints over a run, and measurements after the first one, when the settings leave them open.
SAVES, MEASUREMENTS = 4, 5
#: What a model that cannot generate raises.
UNWRITTEN = (RuntimeError, ValueError, TypeError, AttributeError, TemplateError)


def run_text(
    settings: TextSettings, job: TextJob, say: Say = print, callbacks: Callbacks = (), bar: bool = True
) -> RunRecord:
    """Train as ``settings`` and ``job`` say; return the record that is also in ``run.json`` of the output.

    The output holds ``adapter`` (or ``model`` for full finetuning), ``metrics.jsonl``, ``curve.png`` and checkpoints.
    A run that was cut off and resumed ends with the same parameters as one that was not. SIGTERM and Ctrl-C let it
    save a checkpoint first. Files of :mod:`orthotune.runs.requests` in the output ask for samples, a checkpoint or the
    end. A rule of ``settings.stop_when`` ends it in order, and with ``settings.result=best`` the
    parameters of the best measurement are what is written. Under a launcher every process runs this:
    ``settings.distributed`` says how they share the work; the first one reports and writes.

    Args:
        settings: of the run.
        job: what the recipe adds.
        say: called with each message.
        callbacks: of the trainer, besides those of every run.
        bar: show a progress bar.

    Raises:
        OutputError: the output cannot be written, or holds another run.
        TrainingError: too many steps whose loss or gradient is not finite.
        Stopped: a signal ended the run; a ``KeyboardInterrupt``.
        DataError: data that is missing, empty or of another shape.
        RecipeError: a model or an option that does not exist.
    """
    processes.check_launch(settings.distributed)
    check_options(settings)
    say = say if processes.is_main() else _silent
    with processes.together():
        directory = RunDirectory(settings.output)
        checkpoint = processes.from_main(lambda: directory.open(settings.claimed(), settings.resume, say, GROWING))
        if finished := processes.from_main(lambda: read_json(directory.record) if directory.finished else None):
            record = RunRecord(**finished)
            say(" ".join([f"{directory.path} holds this run, finished.", *_end_of(record)]))
            return record
        processes.require_visible(checkpoint)
        try:
            with quiet(), StopOnSignal(say) as stop, Requests(directory.path) as requests:
                return _Run(settings, job, directory, checkpoint, stop, requests, say).train(callbacks, bar)
        finally:
            directory.drop_if_empty()


def _silent(message: str) -> None:
    """Drop the message: only the main process reports."""


def _end_of(record: RunRecord) -> list[str]:
    """The note of the rule that ended a run, if one did."""
    rule = (record.stopped_by or {}).get("rule")
    return [note for note in record.notes if note.startswith((f"stop_when.{rule}=", f"{rule} ended"))]


class _Run:
    """One run, once its directory is open."""

    def __init__(
        self, settings: TextSettings, job: TextJob, directory: RunDirectory, checkpoint: Path | None,
        stop: StopOnSignal, requests: Requests, say: Say,
    ) -> None:  # fmt: skip
        self.settings, self.job, self.directory, self.checkpoint = settings, job, directory, checkpoint
        self.stop, self.requests, self.say, self.main = stop, requests, say, processes.is_main()
        self.full, self.notes = settings.method == "full", [model_note(settings), *job.notes]
        self.best: BestParameters | None = None
        self.reached: Reached | None = None
        self.writes_text = False

    def train(self, callbacks: Callbacks, bar: bool) -> RunRecord:
        began = time.monotonic()
        trainer = self._trainer()
        counts = adapters.trainable(trainer.model)
        self.notes.append(
            f"{self.settings.method}: {counts[0]:,} of {counts[1]:,} parameters are trained, "
            f"{trainer.planned_steps} steps."
        )
        if note := self.settings.rate_factors.note(trainer.model, self.settings.learning_rate):
            self.notes.append(note)
        self.say("\n".join(self.notes))
        if self.main:
            self.directory.claim(self.settings.claimed())
        log = self._log()
        self._fit(trainer, log, callbacks, bar)
        self._check_stopped(trainer)
        self._choose_result(trainer)
        if trainer.skipped:
            self.notes.append(f"{len(trainer.skipped)} steps were skipped: their loss or gradient was not finite.")
        if warning := log.first("clipping"):
            self.notes.append(warning)
        kept = self._save(trainer, log)
        record = self._record(trainer, log, kept, counts, began)
        if self.main:
            self._write_card(record, kept)
            write_json(self.directory.record, record.model_dump(mode="json"))
        return processes.from_main(lambda: record)

    def _trainer(self) -> RunTrainer:
        settings, job = self.settings, self.job
        data, tokenizer, dtype = job.data(), job.tokenizer(), choose_dtype(settings.dtype)
        # Full finetuning keeps float32 weights: an update of a bfloat16 weight is mostly rounded away.
        model = job.model(torch.float32 if self.full else dtype)
        choose_attention(model, settings.attention)
        adapt = continued(settings, job)
        adapter = None if adapt else adapter_config(settings, job.part(model), self.notes, job.task)
        model = adapt(model, self.notes) if adapt else model
        parts = TrainerParts(
            say=self.say,
            stop=self.stop,
            max_skipped=settings.max_skipped,
            on_failed_save=settings.on_failed_save,
            saves=None if settings.save_every else SAVES,
            rate_factors=settings.rate_factors,
            losses=tuple(job.losses(self.directory, self.checkpoint)),
            muon=settings.optim == MUON,
            add_to_checkpoint=lambda folder: self.best.save(folder) if self.best else None,
        )
        inputs = (model, tokenizer, adapter, data, self.directory.checkpoints, dtype, parts, self.notes)
        trainer = job.trainer(TrainerInputs(*inputs))
        if slow := slow_dtype_note(dtype, trainer.args.device.type, f"dtype={settings.dtype}", "dtype=float32"):
            self.notes.append(slow)
        if settings.merge_aware:
            count = merge_aware(trainer.model)
            self.notes.append(f"merge_aware: {count} quantized layers compute with the weights that a merge stores.")
        engines.check_started(trainer, settings.distributed)
        return trainer

    def _log(self) -> MetricsLog:
        path = self.directory.metrics if self.main else None
        return MetricsLog(path, step_of(self.checkpoint), self.settings.on_failed_save, self.say)

    def _fit(self, trainer: RunTrainer, log: MetricsLog, callbacks: Callbacks, bar: bool) -> None:
        every = self.settings.eval_every or max(1, trainer.planned_steps // MEASUREMENTS)
        progress = ProgressBar(log, self.settings.method, visible=bar and self.main)
        inner = (DiagnosisLog(log, every, self.say), GradientLog(log, self.say))  # before the one that writes the line
        measures = self.job.measures(trainer)
        self._state_cost(trainer, measures, every)
        steps = StepLog(log, measures, every, self.job.entries, self.job.ends(trainer), self.job.score)
        trainer.measured = lambda: steps.measured
        end = EarlyStopping(StopRules(**self.settings.stop_when), log, steps)
        self.best = BestParameters(steps) if self.settings.result == "best" else None
        if self.best and self.checkpoint:
            self.best.load(self.checkpoint)
        asked = Requested(self.requests, self.stop, end, steps, partial(self._sample_now, trainer))
        for callback in (*inner, asked, steps, *([self.best] if self.best else []), end, progress, *callbacks):
            trainer.add_callback(callback)
        checkpoint = str(self.checkpoint) if self.checkpoint else None
        try:
            done = step_of(self.checkpoint)
            if checkpoint and done < trainer.planned_steps and end.at(done):  # ended, and cut off before its record
                trainer.restore(checkpoint)
            else:
                trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            progress.close()
        self.reached = end.reached

    def _state_cost(self, trainer: RunTrainer, measures: Sequence[Measure], every: int) -> None:
        """Say what the measurements of held-out rows will cost."""
        left = max(0, trainer.planned_steps - step_of(self.checkpoint))
        alone = not is_sharded(trainer.model) and processes.count() == 1
        for measure in measures:
            if isinstance(measure, DomainLosses) and left:
                times = -(-left // every) + (0 if self.checkpoint else 1)
                if sentence := cost_sentence(trainer.model, measure.domains, times, timed=alone):
                    self.say(sentence)

    def _check_stopped(self, trainer: RunTrainer) -> None:
        done, steps, checkpoints = trainer.state.global_step, trainer.planned_steps, self.directory.checkpoints
        if not self.stop.asked or self.reached or done >= steps:
            return
        # A full disk may have kept the checkpoint from being written.
        written = (checkpoints / f"checkpoint-{done}").is_dir()
        saved = f"which checkpoint-{done} holds" if written else kept_checkpoint(checkpoints)
        raise self.stop.stopped(
            f"Stopped by {self.stop.asked} after step {done} of {steps}, {saved}. "
            f"Go on with the same settings and resume=auto output={self.directory.path}"
        )

    def _choose_result(self, trainer: RunTrainer) -> None:
        """Say which rule ended the training, and put the best parameters into the model."""
        unit = f"in units of {self.job.score.name}" if self.job.score else "nats per token"
        notes = [self.reached.sentence(trainer.planned_steps, unit)] if self.reached else []
        if self.best is not None:
            step = processes.from_main(lambda: self.best.step if self.best else None)
            if self.main:
                self.best.restore(trainer.model)
            notes.append(
                "result=best: no measurement gained more than it forgot, and the result is the base."
                if step == 0
                else f"result=best: the result is that of step {step}, where gain - forgetting was largest."
                if step is not None
                else "result=best: no measurement was finite, and the result is that of the last step."
            )
        for note in notes:
            self.say(note)
        self.notes += notes

    def _scores_of_result(self, trainer: RunTrainer) -> dict[str, float]:
        """What is measured after the last step alone, of a result that is not that of the last step."""
        if not self.reached and self.settings.result == "last":
            return {}
        return {name: value for measure in self.job.ends(trainer) for name, value in measure(trainer.model).items()}

    def _save(self, trainer: RunTrainer, log: MetricsLog) -> str:
        """Write the adapter or model and the curve; return the name of the folder."""
        kept, path = MODEL if self.full else ADAPTER, self.directory.path
        state = trainer.full_state_dict()
        if self.main:
            with atomic_write(path / kept) as partial:
                self.job.save(trainer, partial, state)
            title = f"{self.settings.method}, learning rate {self.settings.learning_rate:g}"
            (path / CURVE).unlink(missing_ok=True)  # of a shorter run that is made longer
            if missing := not_written(lambda: self.job.curve(log.lines, path / CURVE, title), CURVE):
                self.notes.append(missing)
                self.say(missing)
        return kept

    def _write_samples(self, trainer: RunTrainer, base: Any) -> None:
        """Texts of the base and of the trained model, for the report and the model card."""
        asked = self._samples()
        if self.main:
            (self.directory.path / SAMPLES).unlink(missing_ok=True)  # of a shorter run that is made longer
        self.writes_text = self._can_write(trainer)
        if not self.main or not self._prompts() or not self.writes_text or is_sharded(trainer.model):
            return
        try:
            found = samples(trainer.model, base, trainer.processing_class, self._prompts())
        except UNWRITTEN as fault:
            # The adapter is written: whatever a model cannot generate does not fail the run now.
            self.notes.append(f"No samples: {type(fault).__name__}, {fault}.")
            return
        write_json(self.directory.path / SAMPLES, [*asked, *found], ascii_only=False)

    def _prompts(self) -> list[str]:
        given = self.settings.sample_prompts
        return list(default_prompts(self.settings.model)) if given is None else given

    def _can_write(self, trainer: RunTrainer) -> bool:
        return self.job.task == "CAUSAL_LM" and hasattr(trainer.processing_class, "convert_ids_to_tokens")

    def _samples(self) -> list[dict[str, Any]]:
        """The samples that were asked for so far, each with its step."""
        path = self.directory.path / SAMPLES
        found = read_json_list(path) if path.is_file() else []
        return [row for row in found if isinstance(row, dict) and "step" in row]

    def _sample_now(self, trainer: RunTrainer, model: Any, step: int) -> None:
        """Write texts of the model in the middle of its training; what cannot be written does not end the training."""
        if not self.main:
            return
        why = (
            "this recipe trains no model that writes texts" if not self._can_write(trainer)
            else "sample_prompts is empty" if not self._prompts()
            else "the model is spread over several processes" if is_sharded(model)
            else ""
        )  # fmt: skip
        if why:
            self.say(f"No samples at step {step}: {why}.")
            return
        try:
            found = samples_now(model, trainer.processing_class, self._prompts(), step, self._samples(), not self.full)
            write_json(self.directory.path / SAMPLES, found, ascii_only=False)
        except (*UNWRITTEN, OSError) as fault:
            self.say(f"No samples at step {step}: {type(fault).__name__}, {fault}.")
            return
        self.say(f"Samples of step {step} are in {SAMPLES}.")

    def _write_card(self, record: RunRecord, kept: str) -> None:
        folder = self.directory.path / kept
        config = read_json(folder / "adapter_config.json") if kept == ADAPTER else None
        path = self.directory.path / SAMPLES
        found = [row for row in read_json_list(path) if "step" not in row] if path.is_file() else ()
        write_text(folder / CARD, model_card(record, found, config, self.writes_text))

    def _record(
        self, trainer: RunTrainer, log: MetricsLog, kept: str, counts: tuple[int, int], began: float
    ) -> RunRecord:
        settings = self.settings
        looks = self.main or is_sharded(trainer.model)  # all processes look at a sharded model together
        base = self.job.model(torch.float32) if self.full and looks else None
        findings = self.job.findings(trainer, base) if looks else {}
        self._write_samples(trainer, base)
        until = self.best.step if self.best else None
        scores = [name for name in _scores(log) if log.first(name) is not None and log.last(name, until) is not None]
        if unknown := [name for name in _scores(log) if name not in scores]:
            self.notes.append(f"Not recorded, as no measurement gave a number: {', '.join(unknown)}.")
        artifacts = {kept: kept, "curve": CURVE, "metrics": "metrics.jsonl"}
        if (self.directory.path / SAMPLES).is_file():
            artifacts["samples"] = SAMPLES
        if not (self.directory.path / CURVE).is_file():
            del artifacts["curve"]
        fields: dict[str, Any] = dict(
            recipe=settings.recipe,
            method=settings.method,
            settings=settings.record(),
            versions=versions(),
            device=device_name(),
            trainable_parameters=counts[0],
            total_parameters=counts[1],
            steps=self.reached.step if self.reached else trainer.planned_steps,
            **log.outcome(until),
            scores_before={name: log.first(name) for name in scores},
            scores_after={name: log.last(name, until) for name in scores} | self._scores_of_result(trainer),
            skipped_steps=len(trainer.skipped),
            weights=weight_change(trainer.model, base) if looks else WeightChange(),
            seconds=round(time.monotonic() - began, 1),
            train_seconds=round(log.last("seconds") or 0.0, 1),
            notes=self.notes,
            artifacts=artifacts,
            stopped_by=self.reached.record() if self.reached else None,
            result_step=until,
        )
        return RunRecord(**(fields | findings))


def _scores(log: MetricsLog) -> list[str]:
    """What was measured before training; the losses of the domains have fields of their own in the record."""
    first = log.lines[0] if log.lines else {}
    return [name for name in first if name not in ("step", "seconds", *CHANGES, *CHANGES.values())]
