"""The checkpoint of a trainer, written beside its place: it takes its name when all of it is on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from orthotune.files.atomic import put_in_place
from orthotune.files.json_file import read_json_list, write_json
from orthotune.runs.checkpoint_folder import new_checkpoint
from orthotune.runs.failed_save import OnFailedSave, bearing
from orthotune.runs.nonfinite import bad_parameter, not_saved
from orthotune.runs.processes import largest

SKIPPED = "skipped.json"
#: A pickle and a card, which nothing reads on resuming.
UNREAD = ("training_args.bin", "README.md")


def save_checkpoint(
    trainer: Any,
    model: nn.Module,
    write: Callable[[Path], None],
    skipped: list[dict[str, Any]],
    on_failed_save: OnFailedSave,
    say: Callable[[str], None],
) -> None:
    """Save the state of ``trainer`` as ``checkpoint-STEP`` with checksums (``runs/checkpoint_folder.py``).

    Nothing is written when a trained parameter is not finite. Every process must call this.

    Args:
        trainer: gives the step, the processes and the folder of the checkpoints, its ``output_dir``.
        model: whose parameters are looked at.
        write: lets the trainer save its state in a folder of the name ``checkpoint-STEP`` below the given one.
        skipped: the steps that were skipped until now.
        on_failed_save: ``stop`` or ``go-on``; with several processes it is always ``stop``.
        say: called with a message when nothing is written and training goes on.

    Raises:
        OutputError: the checkpoint cannot be written, and ``on_failed_save`` is ``stop``. The one before is kept.
    """
    step, checkpoints = trainer.state.global_step, Path(trainer.args.output_dir)
    bad = bad_parameter(model)
    if largest(int(bad is not None)):
        say(not_saved(step, bad))
        return
    # Saving is done by all processes together: the others would wait for one that went on without it.
    alone = trainer.accelerator.num_processes == 1
    with bearing(checkpoints, step, on_failed_save if alone else "stop", say):
        _save(trainer, write, skipped, checkpoints, step)


def read_skipped(checkpoint: Path) -> list[dict[str, Any]]:
    """The steps that had been skipped when ``checkpoint`` was saved."""
    path = checkpoint / SKIPPED
    return read_json_list(path) if path.is_file() else []


def _save(
    trainer: Any, write: Callable[[Path], None], skipped: list[dict[str, Any]], checkpoints: Path, step: int
) -> None:
    # Every process adds its random state to the folder that the main one makes, completes and names.
    wait = trainer.accelerator.wait_for_everyone
    if not trainer.is_world_process_zero():
        wait()
        write(checkpoints / f".checkpoint-{step}.part")
        wait()
    else:
        with new_checkpoint(checkpoints, step, trainer.args.save_total_limit) as folder:
            wait()
            write(folder)
            wait()
            _flatten(folder, f"checkpoint-{step}")
            write_json(folder / SKIPPED, skipped)
    wait()


def _flatten(folder: Path, inner: str) -> None:
    """Move what a folder's folder ``inner`` holds up; what the trainer wrote beside it is removed."""
    for path in folder.iterdir():
        if path.name != inner:
            path.unlink()
    for path in list((folder / inner).iterdir()):
        if path.name in UNREAD:
            path.unlink()
        else:
            put_in_place(path, folder / path.name)
    (folder / inner).rmdir()
