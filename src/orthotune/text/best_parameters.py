"""The trained parameters of the best measurement of a run: kept in memory, and in every checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.errors import RecipeError
from orthotune.files.safetensors_file import read_tensors, write_tensors
from orthotune.files.safetensors_header import check_header
from orthotune.runs import processes
from orthotune.runs.metrics_log import net_gain
from orthotune.text.step_log import StepLog

#: The file in a checkpoint.
FILE = "best.safetensors"


class BestParameters(TrainerCallback):
    """Keeps the trained parameters of the measurement with the largest gain - forgetting; of equal ones the first.

    The measurement before training counts, too. The main process alone keeps and writes them.

    Args:
        steps: measures, before this callback; None where :meth:`see` is called by hand.

    Attributes:
        step: of the best measurement; None before the first one.
        net_gain: gain - forgetting there, in nats per token.
    """

    def __init__(self, steps: StepLog | None = None) -> None:
        self.steps = steps
        self.step: int | None = None
        self.net_gain = 0.0
        self._tensors: dict[str, Tensor] = {}

    def see(self, model: nn.Module, step: int, measured: Mapping[str, Any]) -> None:
        """Keep the parameters if they are better than all before.

        Args:
            model: as measured.
            step: of the measurement.
            measured: its ``gain`` and ``forgetting``, in nats per token.
        """
        net = net_gain(measured)
        if net is None or (self.step is not None and net <= self.net_gain):
            return
        self.step, self.net_gain = step, net
        self._tensors = {
            name: parameter.detach().to("cpu", copy=True)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Put the best parameters into the model."""
        for name, parameter in model.named_parameters():
            if name in self._tensors:
                parameter.copy_(self._tensors[name])

    def save(self, folder: Path) -> None:
        """Write the best parameters into a checkpoint; nothing before the first measurement."""
        if self.step is not None:
            write_tensors(folder / FILE, self._tensors, {"step": str(self.step), "net_gain": repr(self.net_gain)})

    def load(self, folder: Path) -> None:
        """Read the best parameters from a checkpoint; without the file, nothing had been measured when it was saved.

        Raises:
            AdapterFileError: the file is damaged.
        """
        if not (folder / FILE).exists():
            return
        self._tensors = read_tensors(folder / FILE)
        found = check_header(folder / FILE).metadata
        self.step, self.net_gain = int(found["step"]), float(found["net_gain"])

    def require(self, measured: Mapping[str, Any]) -> None:
        """Refuse a run that measures no gain.

        Raises:
            RecipeError: no loss of the target domain.
        """
        if "gain" not in measured:
            raise RecipeError("result=best", got="a run that measures no loss of the target domain", do="Leave it out")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        measured = {} if self.steps is None else self.steps.measured
        if state.global_step == 0:
            processes.from_main(lambda: self.require(measured))
        self._look(state, seen["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self._look(state, seen["model"])

    def _look(self, state: TrainerState, model: nn.Module) -> None:
        if self.steps is not None and self.steps.measured and state.is_world_process_zero:
            self.see(model, state.global_step, self.steps.measured)
