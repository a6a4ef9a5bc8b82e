"""The checkpoints of a run: written atomically by rename; find the newest intact one, remove the oldest."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from orthotune.errors import OutputError
from orthotune.files import atomic
from orthotune.files.json_file import read_json
from orthotune.runs.checkpoint_manifest import MANIFEST, check, seal

#: The step in a checkpoint's name, which only orders them; what counts is the step inside.
_NAME = re.compile(r"checkpoint-(\d{1,18})")
Say = Callable[[str], None]


@contextmanager
def new_checkpoint(folder: Path, step: int, keep: int | None = None, keep_every: int | None = None) -> Iterator[Path]:
    """A folder to write a checkpoint to, file by file.

    When the block ends well, its bytes are brought to the disk, ``manifest.json`` with their checksums is added, the
    folder takes the name ``checkpoint-STEP``, and all but the newest ``keep`` checkpoints are removed. Whatever ends
    the process before, what was there stays there.

    Args:
        folder: the folder of the run's checkpoints; created if missing.
        step: steps done.
        keep: how many stay, this one included; all of them if None.
        keep_every: those at multiples of so many steps stay, too, and do not count.

    Raises:
        OSError, OutputError, or what the block raises: nothing has appeared, and nothing was removed.

    Example:
        >>> with new_checkpoint(Path("runs/a/checkpoints"), 50, keep=2) as folder:  # doctest: +SKIP
        ...     save_file(tensors, folder / "adapter_model.safetensors")
    """
    final, partial = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}.part"
    folder.mkdir(parents=True, exist_ok=True)
    atomic.remove(partial)
    try:
        partial.mkdir()
        yield partial
        seal(partial, step)
        atomic.put_in_place(partial, final)
    finally:
        atomic.remove(partial)
    if keep is not None:
        others = [path for path in by_step(folder) if path != final and not _stays(path, keep_every)]
        for old in others[max(1, keep) - (0 if _stays(final, keep_every) else 1) :]:
            atomic.remove(old)


def _stays(checkpoint: Path, keep_every: int | None) -> bool:
    return bool(keep_every) and int(checkpoint.name.rpartition("-")[2]) % (keep_every or 1) == 0


def newest(folder: Path, say: Say | None = None) -> Path | None:
    """The checkpoint with the most steps whose files are all as they were written; None if there is none.

    Args:
        folder: the folder of the run's checkpoints.
        say: called with a message for each newer checkpoint that is skipped because it is damaged.
    """
    found = by_step(folder)
    for path in (path for path in found if (path / MANIFEST).is_file()):
        try:
            check(path)
        except OutputError as fault:
            if say is not None:
                say(f"{fault} The one before it is used.")
            continue
        return path
    # Checkpoints of a version without manifests: only incomplete ones can be detected.
    return next((path for path in found if not (path / MANIFEST).is_file() and state_is_complete(path)), None)


def by_step(folder: Path) -> list[Path]:
    """The folders that are called checkpoints, the most steps first."""
    found = [(int(name[1]), path) for path in folder.glob("checkpoint-*") if (name := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left of a checkpoint, except one that was just about to be exchanged."""
    atomic.sweep(folder, names=r"checkpoint-\d+")


def state_is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint without a manifest was written to its end: the trainer writes its state last."""
    try:
        return isinstance(trainer_step(checkpoint), int)
    except (ValueError, KeyError, TypeError):
        return False


def trainer_step(checkpoint: Path) -> int:
    """The step that the trainer's own state of a checkpoint tells."""
    step: int = read_json(checkpoint / "trainer_state.json")["global_step"]
    return step
