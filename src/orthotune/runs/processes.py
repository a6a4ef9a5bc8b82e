"""The processes of one run: how many there are, which one speaks and writes, and what they agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

import torch
from accelerate import PartialState
from accelerate.state import GradientState
from accelerate.utils import broadcast_object_list

from orthotune.errors import OrthotuneError, OutputError, RecipeError

#: none: one process. ddp: an entire model in each. fsdp2, zero3: parameters spread over them. zero2: optimizer states.
Distributed = Literal["none", "ddp", "fsdp2", "zero2", "zero3"]
#: Environment variables of engines that `accelerate launch` enables from its own configuration.
ENGINES = {"ACCELERATE_USE_FSDP": "fsdp2", "ACCELERATE_USE_DEEPSPEED": "zero"}
Result = TypeVar("Result")


def count() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process is the one that speaks and writes."""
    return int(os.environ.get("RANK", 0)) == 0


def check_launch(word: str) -> None:
    """Refuse a value of ``distributed`` that does not fit how the run was launched.

    Raises:
        RecipeError: several processes without ``distributed``, ``distributed`` with one process, or a launcher that is
        configured for something else.

    Example:
        >>> check_launch("none")
    """
    many = count()
    if (word == "none") != (many == 1):
        raise RecipeError(
            f"distributed={word}",
            got=f"{many} processes" if many > 1 else "one process",
            needed="one process" if word == "none" else "two or more",
            do="Say distributed=ddp, or fsdp2, zero2 or zero3"
            if word == "none"
            else f"Launch it: torchrun --nproc-per-node 2 -m orthotune train sft ... distributed={word}, "
            "or leave distributed out",
        )
    for variable, engine in ENGINES.items():
        if os.environ.get(variable, "false").lower() == "true" and not word.startswith(engine):
            raise RecipeError(
                f"distributed={word}",
                got=f"{variable}=true in the environment, from accelerate's own configuration",
                do="Remove it from the launcher's configuration (accelerate config): the recipe's setting decides",
            )


def share(batch_size: int) -> int:
    """How many examples of a batch each process takes.

    Raises:
        RecipeError: they do not come out even.
    """
    if batch_size % count():
        raise RecipeError(
            f"batch_size={batch_size}",
            got=f"{count()} processes",
            needed="a multiple of the number of processes, among which the examples of a step are shared out",
        )
    return batch_size // count()


@contextmanager
def together() -> Iterator[None]:
    """The processes connected; without effect for a single one. They stay so until :func:`leave`."""
    if count() == 1:
        yield
        return
    before = {variable: os.environ.get(variable) for variable in ENGINES}
    # A run that an error ended in the middle of an accumulation must not count for this one.
    GradientState._reset_state()
    # Trainer's own arguments make this state again, on the same connection.
    PartialState(cpu=not torch.accelerator.is_available())
    try:
        yield
    finally:
        for variable, value in before.items():  # accelerate's settings would affect the next run in this process
            os.environ.pop(variable, None) if value is None else os.environ.update({variable: value})


def leave() -> None:
    """End the connection, at the end of the program: torch cannot connect the same processes again.

    Not after an error: the others may be waiting for this process, and are ended by the launcher.
    """
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def from_main(make: Callable[[], Result]) -> Result:
    """The result of ``make`` in the main process, broadcast to every process; or its error, with the same message.

    Example:
        >>> from_main(lambda: 2)
        2
    """
    if count() == 1:
        return make()
    recorded: list[Any] = [None, None]
    if is_main():
        try:
            recorded[0] = make()
        except OrthotuneError as error:
            recorded[1] = str(error)
    broadcast_object_list(recorded)
    if recorded[1] is not None:
        raise OrthotuneError(recorded[1])
    result: Result = recorded[0]
    return result


def largest(number: int) -> int:
    """The maximum of a number over all processes."""
    if count() == 1:
        return number
    found = torch.tensor(number, device=PartialState().device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def require_visible(path: Any) -> None:
    """Refuse a checkpoint that not every process can see.

    Raises:
        OutputError: names it.
    """
    if path is not None and not path.exists():
        raise OutputError(
            f"checkpoint {path}",
            got=f"no such directory for process {os.environ.get('RANK')}",
            needed="an output that all machines see",
            do="Put output on a shared file system",
        )
