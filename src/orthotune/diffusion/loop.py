"""The one training loop of image models, on accelerate: a killed and resumed run ends with the same numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.diffusion.average import Average
from orthotune.diffusion.checkpoint import Parts, Progress, read_checkpoint, write_checkpoint
from orthotune.diffusion.loop_options import LoopOptions
from orthotune.diffusion.optimizer import make_optimizer, rate, set_rate
from orthotune.diffusion.order import Dataset, Order
from orthotune.diffusion.trainee import Trainee
from orthotune.errors import TrainingError
from orthotune.training.checkpoint_on_signal import StopOnSignal
from orthotune.training.metrics_log import MetricsLog
from orthotune.training.progress import StepBar
from orthotune.training.run_directory import RunDirectory

#: Steps in a row without a finite loss and gradient after which training stops. Half precision begins with a scale
#: that is too high on purpose and finds its own by halving it.
PATIENCE, PATIENCE_FP16 = 5, 20


@dataclass(frozen=True)
class Every:
    """Something to do at step 0, after every ``steps`` steps and after the last one; ``steps`` None: only at the ends.

    ``call(step, trainee, log)`` finds the modules in evaluation mode and, where one is kept, the average in them.
    """

    call: Callable[[int, Trainee, MetricsLog], None]
    steps: int | None = None

    def due(self, step: int, last: int) -> bool:
        """Whether ``call`` is to be called after ``step`` of ``last`` steps."""
        return step in (0, last) or bool(self.steps and step % self.steps == 0)


def train(
    trainee: Trainee,
    data: Dataset,
    options: LoopOptions,
    home: RunDirectory,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = print,
    *,
    accelerator: Any,
    on_step: Iterable[Every] = (),
    title: str = "training",
    bar: bool = True,
) -> MetricsLog:
    """Train ``trainee`` in place and return what was measured; where an average is kept, it is what it holds then.

    Each line of the log has ``step``, ``seconds``, ``train_loss``, ``learning_rate`` and ``gradient_norm``. The
    pictures of a step, its noise and its dropout follow from the seed and the step alone. Checkpoints go to
    ``home.checkpoints``. A step whose loss or gradient is not finite is left out and counted.

    Args:
        trainee: with gradients required where it is to learn.
        data: what it learns from.
        options: how.
        home: where the log and checkpoints go.
        checkpoint: where to go on; None starts anew.
        say: told when training is interrupted or a step is left out.
        accelerator: accelerate's, from :func:`orthotune.diffusion.accelerator.make_accelerator`.
        on_step: what else to do.

    Raises:
        TrainingError: five steps in a row without a finite loss and gradient; the last checkpoint is kept.
        Stopped: by Ctrl-C or SIGTERM, after a checkpoint was written; a ``KeyboardInterrupt``.
    """
    loop = _Loop(
        trainee, data, options, home, say, accelerator, tuple(on_step), StepBar(title, bar and _first(accelerator))
    )
    return loop.run(checkpoint)


class _Loop:
    def __init__(
        self, trainee: Trainee, data: Dataset, options: LoopOptions, home: RunDirectory, say: Callable[[str], None],
        accelerator: Any, on_step: tuple[Every, ...], bar: StepBar,
    ) -> None:  # fmt: skip
        self.trainee, self.data, self.options, self.home = trainee, data, options, home
        self.say: Callable[[str], None] = say if _first(accelerator) else lambda _: None
        self.accelerator, self.on_step, self.bar = accelerator, on_step, bar
        self.order = Order(
            [data.bucket(index) for index in range(len(data))], options.batch_size, options.seed,
            accelerator.num_processes, getattr(data, "turns", False),
        )  # fmt: skip
        model, optimizer = accelerator.prepare(trainee, make_optimizer(trainee.learning(), options))
        average = Average(trainee.learning(), options.ema) if options.ema else None
        self.model, self.optimizer = model, optimizer
        self.parts = Parts(model, optimizer.optimizer, average, accelerator.scaler)
        self.progress, self.bad, self.written = Progress(), 0, -1

    def run(self, checkpoint: Path | None) -> MetricsLog:
        if checkpoint is not None:
            self.progress = read_checkpoint(checkpoint, self.parts)
            self.written = self.progress.step
        first, last = self.progress.step, self.options.steps
        self.log = MetricsLog(self.home.metrics if _first(self.accelerator) else None, from_step=first)
        self.before = self.log.last("seconds") or 0.0
        self.began, self.aside = time.monotonic(), 0.0
        # Also after a resume: the run may have been killed between a checkpoint and what is done after its step.
        self._look(first)
        self.bar.start(last, first)
        try:
            with StopOnSignal(self.say) as stop:
                stop.patient = True
                for step in range(first, last):
                    self._step(step, stop)
                    if self._due(step + 1):
                        self._save()
                    self._look(step + 1)
        finally:
            self.bar.close()
        if self.parts.average is not None:
            self.parts.average.keep()
        self.trainee.eval()
        return self.log

    def _step(self, step: int, stop: StopOnSignal) -> None:
        set_rate(self.optimizer, rate(step, self.options))
        self.model.train()
        loss = torch.zeros((), device=self.accelerator.device)
        for part in range(self.options.gradient_accumulation):
            with self.accelerator.accumulate(self.model):
                loss += self._backward(step * self.options.gradient_accumulation + part)
        norm = self.accelerator.clip_grad_norm_(
            list(self.trainee.learning().values()), self.options.max_grad_norm or math.inf
        )
        # One exchange for all processes: their mean loss, and whether any of them is to stop.
        told = torch.stack([loss / self.options.gradient_accumulation, loss.new_tensor(float(stop.number))])
        mean, asked = self.accelerator.reduce(told, reduction="mean").tolist()
        norm = float(_whole(norm)) if norm is not None else 0.0
        good = math.isfinite(mean) and math.isfinite(norm)
        # Half precision's scaler leaves such a step out itself, and learns from it.
        if good or self.parts.scaler is not None:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step = step + 1
        if good and self.parts.average is not None:
            self.parts.average.update()
        seconds = round(self.before + time.monotonic() - self.began - self.aside, 3)
        line = {"step": step + 1, "seconds": seconds, "train_loss": mean}
        self.log.append(line | {"learning_rate": rate(step, self.options), "gradient_norm": norm})
        self.accelerator.log({"train_loss": mean, "gradient_norm": norm}, step=step + 1)
        self.bar.show(step + 1, {"loss": mean})
        self._count(good, mean, norm)
        if asked and step + 1 < self.options.steps:
            self._save()
            raise stop.stopped(
                f"Stopped after step {step + 1} of {self.options.steps}, which checkpoint-{step + 1} holds. "
                f"Go on with the same settings and resume=auto output={self.home.path}"
            )

    def _backward(self, micro_step: int) -> Tensor:
        process, options = self.accelerator.process_index, self.options
        indices = self.order.indices(micro_step, process)
        seed = _seed(options.seed, micro_step, process)
        # Dropout draws from torch's own generators, noise and times from ours.
        torch.manual_seed(seed)
        draw = torch.Generator().manual_seed(seed)
        losses: Tensor = self.model(self.data.batch(indices).to(self.accelerator.device), draw, options.loss)
        loss = losses.mean()
        self.accelerator.backward(loss)
        return loss.detach().float()

    def _count(self, good: bool, loss: float, norm: float) -> None:
        self.bad = 0 if good else self.bad + 1
        if good:
            return
        self.progress.skipped += 1
        step = self.progress.step
        self.say(f"Step {step} is left out: loss {loss:g}, gradient norm {norm:g}.")
        if self.bad >= (PATIENCE if self.parts.scaler is None else PATIENCE_FP16):
            kept = self.home.newest_checkpoint()
            raise TrainingError(
                f"training stopped at step {step}",
                got=f"no finite loss and gradient in {self.bad} steps in a row (loss {loss:g}, gradient norm {norm:g})",
                do="Lower learning_rate, or use mixed_precision=no or bf16. "
                + (f"{kept.name} is kept" if kept else "There is no checkpoint yet"),
            )

    def _due(self, step: int) -> bool:
        every = self.options.save_every or max(1, self.options.steps // 4)
        return step % every == 0 or step == self.options.steps

    def _save(self) -> None:
        if self.progress.step != self.written:
            writes = _first(self.accelerator)
            write_checkpoint(self.home.checkpoints, self.parts, self.progress, self.options.save_total_limit, writes)
            self.written = self.progress.step

    def _look(self, step: int) -> None:
        due = [one for one in self.on_step if one.due(step, self.options.steps)]
        if not due:
            return
        began = time.monotonic()
        with evaluating(self.trainee), self.parts.average.applied() if self.parts.average else nullcontext():
            for one in due:
                one.call(step, self.trainee, self.log)
        self.log.flush()
        self.aside += time.monotonic() - began


@contextmanager
def evaluating(trainee: Trainee) -> Iterator[None]:
    """The modules in evaluation mode while it is open."""
    modes = {module: module.training for module in trainee.modules()}
    trainee.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def _seed(seed: int, micro_step: int, process: int) -> int:
    """One number for one forward of one process; those of different forwards have nothing to do with each other."""
    mixed = (seed * 1_000_003 + micro_step) * 1_009 + process
    # splitmix64 (Steele et al. 2014): neighbouring numbers become unlike ones.
    mixed = (mixed + 0x9E3779B97F4A7C15) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (mixed ^ (mixed >> 31)) >> 1


def _first(accelerator: Any) -> bool:
    return bool(accelerator.is_main_process)


def _whole(norm: Any) -> Any:
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
