"""Exceptions that word themselves: what was said, what was found, what is needed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OrthotuneError(ValueError):
    """An error that a user can act on.

    Args:
        said: what was asked for, naming the layer, file or line.
        got: what was found instead.
        needed: what would have been right.
        do: the next step for the user.

    Example:
        >>> from orthotune.errors import OrthotuneError
        >>> print(OrthotuneError("block_size=48 for layer 'q_proj'", got="100 features", do="Pass 50."))
        block_size=48 for layer 'q_proj'. Found: 100 features. Pass 50.
    """

    def __init__(self, said: str, *, got: str | None = None, needed: str | None = None, do: str | None = None) -> None:
        self.said, self.got, self.needed, self.do = said, got, needed, do
        parts = [said.rstrip(".")]
        if got:
            parts.append(f"Found: {got.rstrip('.')}")
        if needed:
            parts.append(f"Needed: {needed.rstrip('.')}")
        if do:
            parts.append(do.rstrip("."))
        message = ". ".join(parts)
        super().__init__(message if message.endswith(("?", "!")) else message + ".")


class BlockSizeError(OrthotuneError):
    """A block size or block count that does not fit a layer."""


class UnsupportedLayerError(OrthotuneError, TypeError):
    """A layer, or an option for a layer, that cannot be rotated."""


class ConfigError(OrthotuneError):
    """An option that contradicts another one or has no meaning."""


class TargetError(OrthotuneError):
    """No module of the model is meant by the given names."""


class MergeError(OrthotuneError):
    """A merge that would give a wrong weight; nothing was changed."""


class AdapterFileError(OrthotuneError):
    """An adapter file that is damaged, or made for something else."""


class RecipeError(OrthotuneError):
    """A recipe file or command-line setting that cannot be used."""


class DataError(OrthotuneError):
    """A data set that is missing, empty or has another shape."""


class TrainingError(OrthotuneError):
    """A training that cannot go on; the last good checkpoint was kept."""


class OutputError(OrthotuneError):
    """A place that cannot be written to; nothing was left half-written."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names in ``known`` that look most like ``name``, best first.

    Example:
        >>> nearest("q_prj", ["q_proj", "lm_head"])
        ['q_proj']
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
