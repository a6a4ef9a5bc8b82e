"""TensorBoard and Weights & Biases, through accelerate, if the settings name them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from orthotune.errors import RecipeError

#: tracker -> modules, one of which must be installed, and the package to install
PACKAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "tensorboard": (("tensorboard", "tensorboardX"), "tensorboard"),
    "wandb": (("wandb",), "wandb"),
}


def check_trackers(names: Sequence[str]) -> list[str]:
    """``names``, after checking that each tracker can be used.

    Raises:
        RecipeError: a tracker is unknown, or its package is not installed.

    Example:
        >>> check_trackers([])
        []
    """
    for name in names:
        if name not in PACKAGES:
            raise RecipeError(f"trackers: {name!r}", got="no such tracker", needed=f"one of {', '.join(PACKAGES)}")
        modules, package = PACKAGES[name]
        if not any(find_spec(module) for module in modules):
            raise RecipeError(f"trackers: {name}", got="not installed", do=f"pip install {package}, or leave it out")
    return list(names)
