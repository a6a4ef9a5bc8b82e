"""Find the files of the built-in worlds, which are in a separate package, ``orthotune_worlds``."""

from __future__ import annotations

import re
from pathlib import Path

from orthotune.errors import DataError

#: How to install the files, for messages.
INSTALL = 'pip install "orthotune[worlds]" (in a clone of the repository: pip install ./worlds)'
#: End of the path of a built-in model. Until version 0.2 the models were inside the package orthotune.
_MODEL = re.compile(r"(?:^|[/\\])orthotune(?:_worlds|[/\\]worlds)[/\\](text[/\\]model|image[/\\]pipeline)[/\\]?$")


def home(world: str) -> Path:
    """The folder with the files of a world.

    Args:
        world: ``text`` or ``image``.

    Raises:
        DataError: ``orthotune_worlds`` is not installed, or lacks the folder.

    Example:
        >>> (home("text") / "card.json").is_file()
        True
    """
    try:
        import orthotune_worlds
    except ModuleNotFoundError as missing:
        if missing.name != "orthotune_worlds":
            raise
        raise DataError(
            f"the model and data of the built-in {world} world",
            got="no package orthotune_worlds in this environment",
            do=f"Run {INSTALL}",
        ) from None
    try:
        return orthotune_worlds.path(world)
    except FileNotFoundError as missing:
        raise DataError(f"the built-in {world} world", got=str(missing), do=f"Run {INSTALL}") from None


def need(path: Path, what: str) -> Path:
    """``path``, if that file exists.

    Args:
        path: a file of a world.
        what: name of the file in the message.

    Raises:
        DataError: the file does not exist.
    """
    if not path.is_file():
        raise DataError(what, got=f"no file {path.name} in {path.parent}", do=f"Install it again: {INSTALL}")
    return path


def world_of(base: str) -> str | None:
    """The world whose model a path points to, in any environment; None for any other path or name.

    Args:
        base: a path or a name of a model, as adapters record for their base.

    Example:
        >>> world_of("/old/site-packages/orthotune/worlds/text/model"), world_of("gpt2")
        ('text', None)
    """
    found = _MODEL.search(base)
    return re.split(r"[/\\]", found[1])[0] if found else None


def current(base: str) -> str:
    """The path of the model ``base`` in this environment.

    Adapters record the path of their base. The path of a built-in model differs between environments, and was inside
    the package orthotune until version 0.2. A path that exists, and any other name, is returned unchanged.

    Args:
        base: a path or a name of a model.

    Raises:
        DataError: it is the path of a built-in model in another environment, and ``orthotune_worlds`` is not installed.

    Example:
        >>> current("gpt2")
        'gpt2'
        >>> Path(current("/old/site-packages/orthotune/worlds/text/model")) == home("text") / "model"
        True
    """
    world = world_of(base)
    if world is None or Path(base).exists():
        return base
    return str(home(world) / {"text": "model", "image": "pipeline"}[world])
