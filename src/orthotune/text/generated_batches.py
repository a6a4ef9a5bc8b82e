"""Trainers that use the texts of one generation for several steps: what is left of the texts goes into a checkpoint.

TRL's trainers of reinforcement learning write a batch of texts and learn from the batch in ``steps_per_generation``
parts, ``num_iterations`` times. They count from 0 after a resume and write new texts, so that a run that was cut off
between two generations would go on with other texts than a run that was not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from orthotune.errors import OutputError
from orthotune.files.safetensors_file import read_tensors, write_tensors
from orthotune.files.safetensors_header import check_header

#: The file of a process in a checkpoint.
FILE = "generated-{}.safetensors"


class GeneratedBatches(Trainer):
    """Goes before a trainer of TRL in the bases of a class; its checkpoints then hold the texts still to learn from."""

    _step: int
    _buffered_inputs: list[dict[str, Any]] | None

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the base class, with the texts of the checkpoint."""
        if isinstance(resume_from_checkpoint, str):
            path = Path(resume_from_checkpoint) / FILE.format(self.args.process_index)
            self._step, batches = read_batches(path)
            device = self.args.device
            self._buffered_inputs = batches and [
                {name: tensor.to(device) for name, tensor in batch.items()} for batch in batches
            ]
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        every = self.args.steps_per_generation * self.args.num_iterations
        # At the end of a generation the next step writes texts of its own.
        batches = self._buffered_inputs if self._step % every else None
        write_batches(folder / FILE.format(self.args.process_index), self._step, batches)


def write_batches(path: Path, step: int, batches: list[dict[str, Any]] | None) -> None:
    """Write batches of tensors.

    Args:
        path: of the file.
        step: how many batches were learned from since the training began.
        batches: the tensors of each batch by name; None is not written.

    Raises:
        OutputError: a batch with a value that is no tensor.
    """
    tensors: dict[str, Tensor] = {}
    for place, batch in enumerate(batches or []):
        for name, value in batch.items():
            if isinstance(value, Tensor):
                tensors[f"{place}.{name}"] = value.detach().cpu().contiguous().clone()
            elif value is not None:
                got = f"{name}, a {type(value).__name__}"
                raise OutputError(f"generated texts in {path}", got=got, needed="tensors", do="Save at other steps")
    tensors.setdefault("none", torch.zeros(0))
    write_tensors(path, tensors, {"step": str(step), "batches": str(len(batches or []))})


def read_batches(path: Path) -> tuple[int, list[dict[str, Any]] | None]:
    """The step and the batches of a file of :func:`write_batches`.

    Args:
        path: of the file.

    Raises:
        AdapterFileError: the file is missing or damaged.
    """
    tensors = read_tensors(path, finite=False)  # a token that was impossible has the log-probability -inf
    found = check_header(path).metadata
    batches: list[dict[str, Any]] = [{} for _ in range(int(found["batches"]))]
    for name, tensor in tensors.items():
        place, _, column = name.partition(".")
        if column:
            batches[int(place)][column] = tensor
    return int(found["step"]), batches or None
