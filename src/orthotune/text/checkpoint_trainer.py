"""TRL's trainer, safe: checkpoints that appear whole, steps that are not finite skipped, an end on a signal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from orthotune.files.atomic import put_in_place
from orthotune.files.json_file import read_json_list, write_json
from orthotune.runs.checkpoint_folder import new_checkpoint
from orthotune.runs.checkpoint_on_signal import StopOnSignal
from orthotune.runs.failed_save import OnFailedSave, bearing
from orthotune.runs.nonfinite import (
    Kind,
    bad_parameter,
    first_bad_gradient,
    first_bad_output,
    gradients_are_finite,
    not_saved,
    skipped_message,
)
from orthotune.runs.processes import largest
from orthotune.runs.sharded_model import gathered_adapter, is_sharded
from orthotune.text.shared_base import check_shared_base

SKIPPED = "skipped.json"


class CheckpointTrainer(SFTTrainer):
    """Trains as ``SFTTrainer`` does, through accidents.

    A checkpoint is written beside its place, with the checksums of its files, and takes its name when it is on the disk
    (``checkpoint_folder.py``). A step whose loss or gradient is not finite changes no parameter and is counted; an
    overflow that the scaler of float16 training meets is not, for it lowers its scale and goes on by itself.

    Args:
        max_skipped: steps that may be skipped over the entire run.
        on_failed_save: whether a checkpoint that cannot be written ends the run, or is skipped; of several processes
            it always ends it.
        stop: asked after each step whether to save and end.
        say: told what happened.

    Raises:
        RecipeError: a quantized base that the processes of this run cannot share.
        TrainingError: more than ``max_skipped`` steps; names the layer and the checkpoint that was kept.
        OutputError: a checkpoint cannot be written, and ``on_failed_save`` is ``stop``. The one before is kept.
    """

    def __init__(
        self,
        *args: Any,
        max_skipped: int = 10,
        on_failed_save: OnFailedSave = "stop",
        stop: StopOnSignal | None = None,
        say: Callable[[str], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.accelerator.num_processes > 1:
            check_shared_base(self.model, sharded=self.is_fsdp_enabled)
        self.max_skipped, self.on_failed_save, self.say = max_skipped, on_failed_save, say or (lambda words: None)
        self.skipped: list[dict[str, Any]] = []
        self._bad_inputs: dict[str, Any] | None = None
        if stop is not None:
            self.add_callback(_EndOnSignal(stop))

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the trainer's own; a checkpoint of the last step is only loaded, where the trainer would add a step."""
        if isinstance(resume_from_checkpoint, str):
            state = TrainerState.load_from_json(str(Path(resume_from_checkpoint, "trainer_state.json")))
            kept = Path(resume_from_checkpoint, SKIPPED)
            self.skipped = read_json_list(kept) if kept.is_file() else []
            if 0 < state.max_steps <= state.global_step:
                self._load_from_checkpoint(resume_from_checkpoint)
                self.state = state
                return None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # Steps that are not finite.

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the trainer's own; at the last part of a step that is not finite, its gradients are dropped."""
        given = dict(inputs)
        loss: torch.Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not bool(loss.isfinite().all()):
            self._bad_inputs = given
        if self.accelerator.sync_gradients:
            bad, self._bad_inputs = self._bad_inputs, None
            # Scaled gradients overflow in good order: the scaler leaves the step out and lowers its scale.
            scaled = self.accelerator.scaler is not None
            if self.anywhere(bad is not None or not (scaled or gradients_are_finite(model))):
                self._leave_out(model, bad, scaled)
        return loss

    def _leave_out(self, model: Any, inputs: dict[str, Any] | None, scaled: bool) -> None:
        kind: Kind = "gradient" if inputs is None else "loss"
        if inputs is None or self.accelerator.num_processes > 1:  # a forward of one process would wait for the others
            layer = first_bad_gradient(model)
        else:
            layer = first_bad_output(model, self._prepare_inputs(inputs))
        if not scaled:
            # The optimizer passes over parameters without a gradient: no moment, no decay, no change.
            model.zero_grad(set_to_none=True)
        step = self.state.global_step + 1
        self.skipped.append({"step": step, "kind": kind, "layer": layer})
        advice = "Train with a lower learning rate, or in float32 or bfloat16"
        counted = (len(self.skipped), self.max_skipped)
        self.say(skipped_message(step, kind, layer, *counted, advice, Path(self.args.output_dir)))

    def anywhere(self, bad: bool) -> bool:
        """Whether any process met it: all of them leave a step out, save or end, or none."""
        if self.accelerator.num_processes == 1:
            return bad
        found = torch.tensor(float(bad), device=self.accelerator.device)
        return bool(self.accelerator.reduce(found, "sum") > 0)

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As the trainer's own, which puts the mean of losses before in the place of one that is not finite.

        A step that is skipped has no gradient, and no norm either.
        """
        last = self.skipped[-1] if self.skipped else {}
        if "loss" in logs and last.get("step") == self.state.global_step:
            logs = {**logs, "grad_norm": None} | ({"loss": None} if last["kind"] == "loss" else {})
        super().log(logs, *args, **kwargs)

    # Checkpoints.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        step, home = self.state.global_step, Path(self.args.output_dir)
        bad = bad_parameter(model)
        if self.anywhere(bad is not None):
            self.say(not_saved(step, bad))
            return
        # Saving is done by all processes together: the others would wait for one that went on without it.
        alone = self.accelerator.num_processes == 1
        with bearing(home, step, self.on_failed_save if alone else "stop", self.say):
            self._save_whole(model, trial, home, step)

    def whole_state(self) -> dict[str, torch.Tensor] | None:
        """What ``save_pretrained`` needs as ``state_dict``, of a model that is spread over processes; else None.

        Every process must ask for it. Of an adapted model only the adapter is gathered.
        """
        if not is_sharded(self.model):
            return None
        adapter = gathered_adapter(self.model)
        return self.accelerator.get_state_dict(self.model) if adapter is None else adapter

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the trainer's own, without gathering the base of an adapted model."""
        if (adapter := gathered_adapter(self.model)) is None:
            super().save_model(output_dir, _internal_call)
        else:
            self._save(output_dir, state_dict=adapter)

    def _save_whole(self, model: Any, trial: Any, home: Path, step: int) -> None:
        # Every process adds its random state to the folder that the main one makes, completes and names.
        wait = self.accelerator.wait_for_everyone
        if not self.is_world_process_zero():
            wait()
            self._save_into(home / f".checkpoint-{step}.part", model, trial)
            wait()
        else:
            with new_checkpoint(home, step, self.args.save_total_limit) as folder:
                wait()
                self._save_into(folder, model, trial)
                wait()
                _flatten(folder, f"checkpoint-{step}")
                write_json(folder / SKIPPED, self.skipped)
        wait()

    def _save_into(self, folder: Path, model: Any, trial: Any) -> None:
        """The trainer chooses the folder's name itself, below its output."""
        home = self.args.output_dir
        self.args.output_dir = str(folder)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = home


class _EndOnSignal(TrainerCallback):
    """After the step in which a signal came: a checkpoint, then the end."""

    def __init__(self, stop: StopOnSignal) -> None:
        self.stop = stop

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        self.stop.patient = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self.stop.number = largest(self.stop.number)  # a signal may have come to one of several processes
        if self.stop.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self.stop.patient = False


def _flatten(folder: Path, inner: str) -> None:
    """Move the files of a folder's only folder up, but for a pickle and a card that nothing reads on resuming."""
    for path in folder.iterdir():
        if path.name != inner:
            path.unlink()
    for path in list((folder / inner).iterdir()):
        if path.name in ("training_args.bin", "README.md"):
            path.unlink()
        else:
            put_in_place(path, folder / path.name)
    (folder / inner).rmdir()
