"""Exceptions with structured messages: what was given, what was found, what is needed, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OrthotuneError(ValueError):
    """An error that a user can act on.

    Args:
        given: what the error is about, with the name of the layer, file or line.
        got: what was found.
        needed: what would be valid.
        do: the next step for the user.

    Example:
        >>> from orthotune.errors import OrthotuneError
        >>> print(OrthotuneError("block_size=48 for layer 'q_proj'", got="100 features", do="Pass 50."))
        block_size=48 for layer 'q_proj'. Found: 100 features. Pass 50.
    """

    def __init__(self, given: str, *, got: str | None = None, needed: str | None = None, do: str | None = None) -> None:
        self.given, self.got, self.needed, self.do = given, got, needed, do
        parts = [given.rstrip(".")]
        if got:
            parts.append(f"Found: {got.rstrip('.')}")
        if needed:
            parts.append(f"Needed: {needed.rstrip('.')}")
        if do:
            parts.append(do.rstrip("."))
        message = ". ".join(parts)
        super().__init__(message if message.endswith(("?", "!")) else message + ".")

    @property
    def said(self) -> str:
        """The older name of ``given``."""
        return self.given


class BlockSizeError(OrthotuneError):
    """A block size or block count that does not fit a layer."""


class UnsupportedLayerError(OrthotuneError, TypeError):
    """A layer, or an option for a layer, that cannot be rotated."""


class ConfigError(OrthotuneError):
    """An option that contradicts another one or has no meaning."""


class TargetError(OrthotuneError):
    """The given names match no module of the model."""


class MergeError(OrthotuneError):
    """A merge that would give a wrong weight; nothing was changed."""


class AdapterFileError(OrthotuneError):
    """An adapter file that is damaged, or made for something else."""


class RecipeError(OrthotuneError):
    """A recipe file or command-line setting that cannot be used."""


class DataError(OrthotuneError):
    """A data set that is missing, empty or has another shape."""


class TrainingError(OrthotuneError):
    """A training that cannot continue; the last good checkpoint is kept."""


class OutputError(OrthotuneError):
    """A file or folder that cannot be written; no partial file remains."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The names in ``known`` that look most like ``name``, best first.

    Example:
        >>> nearest("q_prj", ["q_proj", "lm_head"])
        ['q_proj']
    """
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)
