"""The adapter that a run directory holds, for whoever names the directory."""

from __future__ import annotations

import re
from pathlib import Path

from orthotune.errors import AdapterFileError
from orthotune.files.locks import held_by

#: What a run directory holds from its start, and once it is finished.
STARTED, FINISHED = "settings.json", "run.json"
#: The record of a rewinding, beside its adapter.
REWOUND = "rewind.json"
#: The record of a run that a signal stopped, until the run goes on.
STOPPED = "stopped.json"
#: Recipes of image models: their runs hold no language model.
IMAGE_RECIPES = ("subject", "control", "t2i")
#: The lock that a process holds on a run directory while it trains there.
LOCK = ".lock"
#: The record of a finished run that was made longer, by its number of steps.
SHORTER = re.compile(r"run-(\d+)\.json")


def adapter_in(path: str | Path) -> Path:
    """The adapter at a path: that in a run directory or in the output of a rewinding; any other path is unchanged.

    Args:
        path: a file, a folder with an adapter, a run directory, or what ``orthotune rewind`` wrote.

    Raises:
        AdapterFileError: a run directory without an adapter: the run is not finished, or trained the entire model; or
            with one that is older than the run, see :func:`refuse_older`.

    Example:
        >>> adapter_in("adapters/style.safetensors").name
        'style.safetensors'
    """
    path = Path(path)
    ours = any((path / name).is_file() for name in (STARTED, FINISHED, REWOUND))
    if not ours or (path / "adapter_config.json").is_file():
        return path
    if (path / "adapter").is_dir():
        refuse_older(path, "adapter")
        return path / "adapter"
    if (path / "model").is_dir():
        raise AdapterFileError(
            f"the run in {path}", got="a model that was trained in full", needed="an adapter",
            do=f"Use the model itself: {path / 'model'}",
        )  # fmt: skip
    raise AdapterFileError(
        f"the run in {path}", got="no adapter: the run is not finished",
        do="Go on with the same command and resume=auto, or name a folder with an adapter",
    )  # fmt: skip


def refuse_older(run: Path, kept: str) -> None:
    """Refuse what an earlier part of a run left while the run goes on, or after it was cut off.

    A finished run that is made longer, and a stopped run that is continued, keep what they wrote until the new end.

    Args:
        run: a run directory, or any other folder.
        kept: ``adapter`` or ``model``, which is in it.

    Raises:
        AdapterFileError: the folder is that of a run that has begun, and neither is finished nor was stopped.

    Example:
        >>> refuse_older(Path("adapters"), "adapter")
    """
    if not (run / STARTED).is_file() or any((run / name).is_file() for name in (FINISHED, STOPPED, REWOUND)):
        return
    steps = [int(found[1]) for one in run.iterdir() if (found := SHORTER.fullmatch(one.name))]
    of = f" of {max(steps)} steps" if steps else ""
    holder = held_by(run / LOCK)
    trained_by = f", and process {holder['process']} on {holder['host']} is training it" if holder else ""
    raise AdapterFileError(
        f"the run in {run}",
        got=f"a run that is not finished{trained_by}, with the {kept}{of} that was written before it went on",
        needed="a finished run",
        do=f"Go on with the same command and resume=auto{' when that process has ended' if holder else ''}, or name "
        f"the older {kept} itself: {run / kept}",
    )
