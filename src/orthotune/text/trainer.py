"""Any trainer of transformers or TRL with what every run has; each feature is a class or a function of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState

from orthotune.runs.checkpoint_on_signal import StopOnSignal
from orthotune.runs.failed_save import OnFailedSave
from orthotune.runs.learning_rates import EQUAL, RateFactors, give_rates
from orthotune.runs.sharded_model import gathered_adapter, is_sharded
from orthotune.text.added_losses import AddedLosses, LossMaker
from orthotune.text.muon import muon_with_adamw
from orthotune.text.nonfinite_steps import NonFiniteSteps
from orthotune.text.saved_state import read_skipped, save_checkpoint
from orthotune.text.shared_base import check_shared_base
from orthotune.text.stop_callback import StopCallback
from orthotune.tuner.first_step import keep_float32

#: Attributes in which TRL's trainers collect what they log, while they compute a loss.
COLLECTED = ("_metrics", "_stored_metrics", "_total_train_tokens")


def _silent(message: str) -> None:
    """Drop the message."""


@dataclass(frozen=True)
class TrainerParts:
    """What a run adds to a trainer, complete when the trainer is made.

    Args:
        say: called with each message.
        stop: asked after each step whether to save a checkpoint and end; None never ends early.
        max_skipped: steps with a loss or gradient that is not finite, skipped before the run gives up.
        on_failed_save: whether a checkpoint that cannot be written ends the run, or is skipped; with several processes
            it always ends the run.
        saves: checkpoints over the run, at even distances; None saves as ``save_steps`` of the arguments says.
        rate_factors: by how much the learning rates of single parameters differ.
        losses: make what is added to the loss, once the data is tokenized and the model is in its place.
        muon: train matrices by Muon, whatever optimizer the arguments name for the rest.
        add_to_checkpoint: called in the main process with the folder of each checkpoint, to write further files.

    Example:
        >>> TrainerParts(max_skipped=3).rate_factors.magnitude
        1.0
    """

    say: Callable[[str], None] = _silent
    stop: StopOnSignal | None = None
    max_skipped: int = 10
    on_failed_save: OnFailedSave = "stop"
    saves: int | None = None
    rate_factors: RateFactors = EQUAL
    losses: tuple[LossMaker, ...] = ()
    muon: bool = False
    add_to_checkpoint: Callable[[Path], None] | None = None


def _state_of(checkpoint: str) -> TrainerState:
    return TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json")))


@cache
def run_trainer(base: type[Any]) -> type[Any]:
    """The class ``base`` with what every run has; it takes one argument more, ``parts``.

    Args:
        base: ``transformers.Trainer``, or a class that is derived from it, as all of TRL's are.

    Returns:
        A subclass of ``base`` and of :class:`RunTrainer`; the same one for the same ``base``.

    Example:
        >>> from trl import DPOTrainer
        >>> made = run_trainer(DPOTrainer)
        >>> made.__name__, issubclass(made, DPOTrainer), made is run_trainer(DPOTrainer)
        ('RunDPOTrainer', True, True)
    """
    if issubclass(base, RunTrainer):
        return base
    return type(f"Run{base.__name__}", (RunTrainer, base), {"__module__": __name__, "__doc__": RunTrainer.__doc__})


class RunTrainer(Trainer):
    """Trains as its base class does, and forwards to the parts of the run.

    A checkpoint appears complete or not at all (``saved_state.py``). A step whose loss or gradient is not finite
    changes no parameter and is counted (``nonfinite_steps.py``). A signal ends the training after a checkpoint
    (``stop_callback.py``). Magnitudes and blocks of other sizes have learning rates of their own
    (``runs/learning_rates.py``). Penalties are added to the loss (``added_losses.py``). Nothing is printed.

    Args:
        parts: what the run adds.

    Raises:
        RecipeError: a quantized base that the processes of this run cannot share.
        TrainingError: more than ``max_skipped`` steps; names the layer and the checkpoint that is kept.
        OutputError: a checkpoint cannot be written, and ``on_failed_save`` is ``stop``. The one before is kept.
    """

    optimizer: Any  # the base class creates it late

    def __init__(self, *args: Any, parts: TrainerParts | None = None, **kwargs: Any) -> None:
        self.parts = parts = parts or TrainerParts()
        self.nonfinite = NonFiniteSteps(parts.max_skipped, parts.say)
        self.added = AddedLosses(parts.losses)
        self._batch: dict[str, Any] | None = None
        #: What was measured at this step, which trackers are given with the loss.
        self.measured: Callable[[], Mapping[str, Any]] = dict
        super().__init__(*args, **kwargs)
        if self.accelerator.num_processes > 1:
            check_shared_base(self.model, sharded=self.is_fsdp_enabled)
        keep_float32(self.model)
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        if parts.stop is not None:
            self.add_callback(StopCallback(parts.stop))
        if parts.saves is not None:
            self.args.save_steps = max(1, self.planned_steps // parts.saves)

    @cached_property
    def planned_steps(self) -> int:
        """How many optimizer steps the trainer will make."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        per_epoch = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
        return math.ceil(per_epoch * self.args.num_train_epochs)

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """The steps that were skipped until now: ``step``, ``kind`` and ``layer`` of each."""
        return self.nonfinite.skipped

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the base class; a checkpoint of the last step is only loaded, where the base class would add a step."""
        self.added.start(self)
        if isinstance(resume_from_checkpoint, str):
            self.nonfinite.skipped = read_skipped(Path(resume_from_checkpoint))
            state = _state_of(resume_from_checkpoint)
            # A run whose steps were raised goes on; the state in its checkpoint has the former number.
            if 0 < state.max_steps <= state.global_step and self.planned_steps <= state.global_step:
                return self.restore(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def restore(self, checkpoint: str) -> None:
        """Load a checkpoint after which nothing is trained."""
        self.nonfinite.skipped = read_skipped(Path(checkpoint))
        self._load_from_checkpoint(checkpoint)
        self.state = _state_of(checkpoint)

    def create_optimizer(self, model: Any = None) -> Any:
        """As the base class, with a group for each learning rate."""
        known = self.optimizer
        if known is None and self.parts.muon:
            self.optimizer = muon_with_adamw(
                self.model if model is None else model, self.args.learning_rate, self.args.weight_decay
            )
        optimizer = super().create_optimizer(model)
        if known is None:
            give_rates(optimizer, self.model if model is None else model, self.parts.rate_factors)
        return optimizer

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """As the base class; the gradients of a step that is not finite are dropped at its last batch."""
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        batch, self._batch = self._batch, None
        self.nonfinite.after_batch(self, model, loss, batch)
        return loss

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As the base class, and in training the losses that are added."""
        if return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # Here, not in training_step: trainers that generate their batches give these only to the loss.
        self._batch = dict(inputs) if isinstance(inputs, Mapping) else None
        if not self.added:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # First, so that the forward of the base meets no graph of the other loss in memory.
        added = self.added(self, model)
        # Where the base class does not divide the loss by the batches of a step, nobody divides the sum again.
        batches = self.current_gradient_accumulation_steps if self._is_scaled(num_items_in_batch) else 1
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        for one in added:
            loss = loss + one / batches
        return loss

    def loss_again(self, model: Any, inputs: dict[str, Any]) -> Any:
        """The loss of the base class once more, to look for its fault; what trainers collect to log stays as it was."""
        with self._collecting_nothing():
            return super().compute_loss(model, dict(inputs))

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As the base class, with the entries of added losses, and without numbers of a step that was skipped."""
        if "loss" in logs:
            logs = {**logs, **self.added.entries(), **self.nonfinite.unmeasured(self.state.global_step)}
            if self.args.report_to:
                logs |= {key: value for key, value in self.measured().items() if value is not None}
        super().log(logs, *args, **kwargs)

    def full_state_dict(self) -> dict[str, Tensor] | None:
        """What ``save_pretrained`` needs as ``state_dict``, of a model that is spread over processes; else None.

        Every process must ask for it. Of an adapted model only the adapter is gathered.
        """
        if not is_sharded(self.model):
            return None
        adapter = gathered_adapter(self.model)
        return self.accelerator.get_state_dict(self.model) if adapter is None else adapter

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the base class, without gathering the base of an adapted model."""
        if (adapter := gathered_adapter(self.model)) is None:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir, state_dict=adapter)

    def _send_telemetry(self) -> None:
        """TRL would report model, device and kind of data of every trainer; a run stays on this machine."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        def write(folder: Path) -> None:
            # The base class chooses the name itself, below its output.
            output, self.args.output_dir = self.args.output_dir, str(folder)
            try:
                super(RunTrainer, self)._save_checkpoint(model, trial)
                if self.parts.add_to_checkpoint is not None and self.is_world_process_zero():
                    self.parts.add_to_checkpoint(folder / f"checkpoint-{self.state.global_step}")
            finally:
                self.args.output_dir = output

        save_checkpoint(self, model, write, self.skipped, self.parts.on_failed_save, self.parts.say)

    def _is_scaled(self, num_items: Any) -> bool:
        """Whether the loss of the base class is divided by all that a step holds, as transformers decides."""
        stated = getattr(self, "loss_is_scaled_for_ga", None)
        if stated is not None:
            return bool(stated)
        by_model = self.model_accepts_loss_kwargs and num_items is not None
        return bool(by_model) or self.compute_loss_func is not None

    @contextmanager
    def _collecting_nothing(self) -> Iterator[None]:
        before = {name: value for name, value in vars(self).items() if name in COLLECTED}
        self.__dict__.update(copy.deepcopy(before))
        try:
            yield
        finally:
            self.__dict__.update(before)
