"""Where the files of the worlds are.

Those of the built-in worlds are in the package ``orthotune_worlds``, which is a wheel of its own; a real model is in
the cache, where ``orthotune worlds get`` put it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from orthotune.errors import DataError
from orthotune.files.cache import cache_folder

#: How to install the files, for messages.
INSTALL = 'pip install "orthotune[worlds]" (in a clone of the repository: pip install ./worlds)'
#: Words that settings may say in the place of the path of a language model.
TEXT_WORLD, SMOLLM2 = "text-world", "smollm2"
#: The built-in image model, by the name that recipes give it.
IMAGE_WORLD = "image-world"
MODEL_WORDS = (TEXT_WORLD, SMOLLM2)
#: End of the path of a built-in model. Until version 0.2 the models were inside the package orthotune.
_MODEL = re.compile(r"(?:^|[/\\])orthotune(?:_worlds|[/\\]worlds)[/\\](text[/\\]model|image[/\\]pipeline)[/\\]?$")


def world_folder(world: str) -> Path:
    """The folder with the files of a world.

    Args:
        world: ``text`` or ``image``.

    Raises:
        DataError: ``orthotune_worlds`` is not installed, or lacks the folder.

    Example:
        >>> (world_folder("text") / "card.json").is_file()
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


def cached_model(word: str) -> Path:
    """The folder in the cache of a model that is not in the wheel; it may not exist yet.

    Args:
        word: ``smollm2``.
    """
    return cache_folder() / "models" / word


def model_folder(model: str) -> str:
    """The path that a model's word means; any other path or name is returned unchanged.

    Args:
        model: ``text-world``, ``image-world``, ``smollm2``, a path, or a name on the hub.

    Raises:
        DataError: the model of the word is not installed, or was not fetched yet.

    Example:
        >>> Path(model_folder("text-world")).name, model_folder("gpt2")
        ('model', 'gpt2')
    """
    if model == TEXT_WORLD:
        return str(world_folder("text") / "model")
    if model == IMAGE_WORLD and not Path(model).exists():
        return str(world_folder("image") / "pipeline")
    if model != SMOLLM2 or Path(model).exists():
        return model
    folder = cached_model(model)
    if not (folder / "config.json").is_file():
        raise DataError(f"model={model}", got=f"no model in {folder}", do=f"Run `orthotune worlds get {model}` once")
    return str(folder)


def names_built_in(source: str, words: Collection[str]) -> bool:
    """Whether a source of data names a built-in set: the word of one, or the word and a split.

    Args:
        source: a setting as ``data``: a path, a name on the hub, ``WORD`` or ``WORD/SPLIT``.
        words: what the sets are called.

    Raises:
        DataError: a file or folder here has that name, too, so that either may be meant.

    Example:
        >>> names_built_in("text-world/new_test", ["text-world"]), names_built_in("./text-world", ["text-world"])
        (True, False)
    """
    word = next((one for one in words if source == one or source.startswith(f"{one}/")), None)
    if word is None:
        return False
    if Path(source).exists():
        raise DataError(
            f"data {source!r}", got=f"a file or folder here with the name of the built-in data {word}",
            needed="a name that only one of them has",
            do=f"Write ./{source} for what is here. For the built-in data, run the command in another folder, or "
            f"rename {source} here",
        )  # fmt: skip
    return True


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
        >>> Path(current("/old/site-packages/orthotune/worlds/text/model")) == world_folder("text") / "model"
        True
    """
    world = world_of(base)
    if world is None or Path(base).exists():
        return base
    return str(world_folder(world) / {"text": "model", "image": "pipeline"}[world])
