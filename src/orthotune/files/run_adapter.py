"""The adapter that a run directory holds, for whoever names the directory."""

from __future__ import annotations

from pathlib import Path

from orthotune.errors import AdapterFileError

#: What a run directory holds from its start, and once it is finished.
STARTED, FINISHED = "settings.json", "run.json"
#: The record of a rewinding, beside its adapter.
REWOUND = "rewind.json"
#: The record of a run that a signal stopped, until the run goes on.
STOPPED = "stopped.json"
#: Recipes of image models: their runs hold no language model.
IMAGE_RECIPES = ("subject", "control", "t2i")


def adapter_in(path: str | Path) -> Path:
    """The adapter at a path: that in a run directory or in the output of a rewinding; any other path is unchanged.

    Args:
        path: a file, a folder with an adapter, a run directory, or what ``orthotune rewind`` wrote.

    Raises:
        AdapterFileError: a run directory without an adapter: the run is not finished, or trained the entire model.

    Example:
        >>> adapter_in("adapters/style.safetensors").name
        'style.safetensors'
    """
    path = Path(path)
    ours = any((path / name).is_file() for name in (STARTED, FINISHED, REWOUND))
    if not ours or (path / "adapter_config.json").is_file():
        return path
    if (path / "adapter").is_dir():
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
