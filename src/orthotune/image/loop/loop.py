"""The training loop of image models, on accelerate. A run that was killed and resumed gives the same parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.image.loop.average import Average
from orthotune.image.loop.checkpoint import Parts, Progress, read_checkpoint, write_checkpoint
from orthotune.image.loop.generators import generator_for
from orthotune.image.loop.optimizer import make_optimizer, rate, set_rate, set_training
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.order import Dataset, Order
from orthotune.image.loop.skipped_steps import SkippedSteps
from orthotune.image.loop.trainee import Trainee
from orthotune.runs.checkpoint_on_signal import StopOnSignal
from orthotune.runs.clipping import ClippingWatch
from orthotune.runs.directory import RunDirectory
from orthotune.runs.failed_save import bearing, kept
from orthotune.runs.metrics_log import MetricsLog
from orthotune.runs.nonfinite import Kind, bad_parameter, gradients_are_finite, not_saved
from orthotune.runs.progress import StepBar
from orthotune.runs.requests import Request, Requests


@dataclass(frozen=True)
class Every:
    """A callback at step 0, after each ``steps`` steps and after the last step; ``steps`` None: only first and last.

    ``call(step, trainee, log)`` runs with the modules in evaluation mode and with the averaged parameters, if any.
    With ``samples``, the callback is also called when a user asks for samples.
    """

    call: Callable[[int, Trainee, MetricsLog], None]
    steps: int | None = None
    samples: bool = False

    def due(self, step: int, last: int) -> bool:
        """Whether the callback is called at a step.

        Args:
            step: the step.
            last: number of steps of the run.
        """
        return step in (0, last) or bool(self.steps and step % self.steps == 0)


@dataclass(frozen=True)
class Hooks:
    """What a recipe adds to the loop.

    Args:
        on_step: callbacks.
        ends: step -> whether the training ends there, after a checkpoint; called in all processes, after the callbacks.
        add_to_checkpoint: writes further files into the folder of a checkpoint, with the averaged parameters, if any;
            called in the main process.
        finish: called in all processes with a step after which a user asks for the end in order; ``ends`` comes next.
    """

    on_step: tuple[Every, ...] = ()
    ends: Callable[[int], bool] = lambda step: False
    add_to_checkpoint: Callable[[Path], None] | None = None
    finish: Callable[[int], None] = lambda step: None


def train(
    trainee: Trainee,
    data: Dataset,
    options: LoopOptions,
    run_dir: RunDirectory,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = print,
    *,
    accelerator: Any,
    on_step: Iterable[Every] = (),
    hooks: Hooks | None = None,
    title: str = "training",
    bar: bool | StepBar = True,
) -> MetricsLog:
    """Train ``trainee`` in place and return the metrics. With an average, the trainee has the averaged parameters then.

    Each line of the log has ``step``, ``seconds``, ``train_loss``, ``learning_rate`` and ``gradient_norm``, before
    clipping; ``clipping`` is a warning after many clipped steps in a row. The images of a step, its noise and its
    dropout depend only on the seed and the step. They are the same for several processes and for one process that
    accumulates as many batches. Checkpoints are written to ``run_dir.checkpoints``. A step whose loss or gradient is
    not finite is skipped and counted, and its line has the key ``left_out``; an overflow in the gradient scaler of half
    precision is not counted. Files and signals in :mod:`orthotune.runs.requests` ask for samples, a checkpoint or the
    end after the current step.

    Args:
        trainee: the parameters to train require gradients.
        data: the training images.
        options: of the loop.
        run_dir: for the log and the checkpoints.
        checkpoint: to resume from; None starts from the beginning.
        say: gets messages about interruptions and skipped steps.
        accelerator: from :func:`orthotune.image.loop.accelerator.make_accelerator`.
        on_step: callbacks.
        hooks: of the recipe; callbacks there come after ``on_step``.
        title: of the progress bar.
        bar: show a progress bar, or the bar itself.

    Raises:
        TrainingError: more than ``options.max_skipped`` steps without a finite loss and gradient, or the gradient
            scaler finds no scale; the message names the layer and the checkpoint that is kept.
        OutputError: a checkpoint or the log cannot be written, and ``options.on_failed_save`` is ``stop``.
        Stopped: by Ctrl-C, SIGTERM or a request, after a checkpoint was written; a ``KeyboardInterrupt``.
    """
    hooks = hooks or Hooks()
    hooks = replace(hooks, on_step=(*on_step, *hooks.on_step))
    shown = bar if isinstance(bar, StepBar) else StepBar(title, bar and _first(accelerator))
    return _Loop(trainee, data, options, run_dir, say, accelerator, hooks, shown).run(checkpoint)


class _Loop:
    def __init__(
        self, trainee: Trainee, data: Dataset, options: LoopOptions, run_dir: RunDirectory, say: Callable[[str], None],
        accelerator: Any, hooks: Hooks, bar: StepBar,
    ) -> None:  # fmt: skip
        self.trainee, self.data, self.options, self.run_dir = trainee, data, options, run_dir
        self.say: Callable[[str], None] = say if _first(accelerator) else lambda _: None
        self.accelerator, self.hooks, self.bar = accelerator, hooks, bar
        self.order = Order(
            [data.bucket(index) for index in range(len(data))], options.batch_size, options.seed,
            accelerator.num_processes, getattr(data, "epoch_in_index", False),
        )  # fmt: skip
        swapped = trainee.family.swap is not None  # such a model is where it belongs, in parts
        model, optimizer = accelerator.prepare(
            trainee, make_optimizer(trainee.learning(), options), device_placement=[False, True] if swapped else None
        )
        average = Average(trainee.learning(), options.ema) if options.ema else None
        self.model, self.optimizer = model, optimizer
        self.parts = Parts(model, optimizer.optimizer, average, accelerator.scaler)
        self.progress, self.written = Progress(), -1
        self.skipped = SkippedSteps(trainee, options, run_dir.checkpoints, self.say, accelerator.num_processes == 1)

    def run(self, checkpoint: Path | None) -> MetricsLog:
        if checkpoint is not None:
            self.progress = read_checkpoint(checkpoint, self.parts)
            self.written = self.progress.step
        first, last = self.progress.step, self.options.steps
        self.log = MetricsLog(
            self.run_dir.metrics if _first(self.accelerator) else None, first, self.options.on_failed_save, self.say
        )
        self.watch = ClippingWatch(self.options.max_grad_norm, self.log.lines)
        self.before = self.log.last("seconds") or 0.0
        self.began, self.aside = time.monotonic(), 0.0
        self.bar.start(last, first)
        try:
            # Also after a resume: the run may have been killed between a checkpoint and the callbacks of its step.
            self._run_callbacks(first)
            self.bar.began = time.monotonic()
            with StopOnSignal(self.say) as stop, Requests(self.run_dir.path) as self.requests:
                stop.patient = True
                for step in range(first, last):
                    if self.hooks.ends(step):
                        self._save()
                        self._call([one for one in self.hooks.on_step if not one.due(step, last)], step)
                        break
                    asked = self._step(step, stop)
                    if self._due(step + 1) or Request.SAVE in asked:
                        self._save()
                    self._run_callbacks(step + 1, Request.SAMPLE in asked)
                    if Request.FINISH in asked and step + 1 < last:
                        self.hooks.finish(step + 1)
        finally:
            self.bar.close()
        set_training(self.parts.optimizer, False)
        if self.parts.average is not None:
            self.parts.average.keep()
        self.trainee.eval()
        return self.log

    def _step(self, step: int, stop: StopOnSignal) -> Request:
        """One step of the optimizer; returns what was asked meanwhile."""
        set_rate(self.optimizer, rate(step, self.options))
        self.model.train()
        set_training(self.parts.optimizer, True)
        loss = torch.zeros((), device=self.accelerator.device)
        for part in range(self.options.gradient_accumulation):
            with self.accelerator.accumulate(self.model):
                loss += self._backward(step * self.options.gradient_accumulation + part)
        # Overflows of scaled gradients are expected: the scaler skips the step and lowers its scale.
        scaled = self.parts.scaler is not None
        spoilt = not (scaled or gradients_are_finite(self.trainee))
        # One exchange between processes: mean loss, whether any process must stop or has a non-finite gradient, and
        # what was asked of the main process.
        wanted = self.requests.take() if _first(self.accelerator) else Request.NONE
        flags = loss.new_tensor([float(stop.number), float(spoilt), float(wanted)])
        exchanged = torch.stack([loss / self.options.gradient_accumulation, *flags])
        mean, asked, anywhere, requested = self.accelerator.reduce(exchanged, reduction="mean").tolist()
        wanted = Request(round(requested * self.accelerator.num_processes))
        kind: Kind | None = "loss" if not math.isfinite(mean) else "gradient" if anywhere else None
        layer = self.skipped.layer(kind) if kind else None
        norm = self._clip()
        finite = kind is None and math.isfinite(norm)
        if not finite and not scaled:
            kind = kind or "gradient"  # finite gradients whose squared norm overflows
        # The gradient scaler skips such a step itself, and adjusts its scale.
        if finite or scaled:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step = step + 1
        if finite and self.parts.average is not None:
            self.parts.average.update()
        seconds = round(self.before + time.monotonic() - self.began - self.aside, 3)
        line = {"step": step + 1, "seconds": seconds, "train_loss": mean}
        line |= {"learning_rate": rate(step, self.options), "gradient_norm": norm}
        line |= {"left_out": kind} if kind else {}
        if warning := self.watch.see(step + 1, None if kind else norm):
            line["clipping"] = warning
            self.say(warning)
        self.log.append(line)
        self.accelerator.log({"train_loss": mean, "gradient_norm": norm}, step=step + 1)
        self.bar.show(step + 1, {"loss": mean})
        self.skipped.count(self.progress, kind, layer, overflow=not finite)
        if Request.STOP in wanted:
            stop.ask("stop-now")
        if (asked or Request.STOP in wanted) and step + 1 < self.options.steps:
            self._save()
            saved = f"which checkpoint-{step + 1} holds" if self.written == step + 1 else kept(self.run_dir.checkpoints)
            raise stop.stopped(
                f"Stopped after step {step + 1} of {self.options.steps}, {saved}. "
                f"Go on with the same settings and resume=auto output={self.run_dir.path}"
            )
        return wanted

    def _backward(self, micro_step: int) -> Tensor:
        process, options = self.accelerator.process_index, self.options
        batch = self.data.batch(self.order.indices(micro_step, process)).to(self.accelerator.device)
        # Seeded by the batch, not by the process: several processes use the same noise as one that accumulates.
        number = micro_step * self.accelerator.num_processes + process
        losses: Tensor = self.model(batch, generator_for(options.seed, number), options.loss)
        loss = losses.mean()
        self.skipped.look(loss, number, batch)
        self.accelerator.backward(loss)
        return loss.detach().float()

    def _clip(self) -> float:
        parameters = list(self.trainee.learning().values())
        norm = self.accelerator.clip_grad_norm_(parameters, self.options.max_grad_norm or math.inf)
        return float(_unsharded(norm)) if norm is not None else 0.0

    def _due(self, step: int) -> bool:
        every = self.options.save_every or max(1, self.options.steps // 4)
        kept = bool(self.options.keep_every) and step % (self.options.keep_every or 1) == 0
        return kept or step % every == 0 or step == self.options.steps

    def _save(self) -> None:
        step, folder = self.progress.step, self.run_dir.checkpoints
        if step == self.written:
            return
        bad = bad_parameter(self.trainee)
        spoilt = torch.tensor(float(bad is not None), device=self.accelerator.device)
        if bool(self.accelerator.reduce(spoilt, reduction="sum") > 0):
            self.say(not_saved(step, bad))
            return
        # All ranks take part in the gather; only rank 0 writes, and its write errors must not stop the others.
        set_training(self.parts.optimizer, False)
        with bearing(folder, step, self.options.on_failed_save, self.say):
            write_checkpoint(
                folder, self.parts, self.progress, self.options.save_total_limit, _first(self.accelerator),
                keep_every=self.options.keep_every, add=self._add,
            )  # fmt: skip
            self.written = step

    def _add(self, folder: Path) -> None:
        if self.hooks.add_to_checkpoint is not None:
            with self._averaged():
                self.hooks.add_to_checkpoint(folder)

    def _averaged(self) -> AbstractContextManager[None]:
        return self.parts.average.applied() if self.parts.average else nullcontext()

    def _run_callbacks(self, step: int, sampled: bool = False) -> None:
        last = self.options.steps
        self._call([one for one in self.hooks.on_step if one.due(step, last) or (sampled and one.samples)], step)

    def _call(self, due: list[Every], step: int) -> None:
        if not due:
            return
        began = time.monotonic()
        set_training(self.parts.optimizer, False)
        with evaluating(self.trainee), self._averaged():
            for one in due:
                one.call(step, self.trainee, self.log)
        self.log.flush()
        self.aside += time.monotonic() - began


@contextmanager
def evaluating(trainee: Trainee) -> Iterator[None]:
    """Context manager that puts the modules into evaluation mode and then restores their modes."""
    modes = {module: module.training for module in trainee.modules()}
    trainee.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _first(accelerator: Any) -> bool:
    return bool(accelerator.is_main_process)


def _unsharded(norm: Any) -> Any:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
