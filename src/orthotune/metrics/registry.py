"""The measures by name. A new measure is one file and one line here; its function is imported when it is first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orthotune.errors import ConfigError, nearest
from orthotune.metrics.measured import Measured


@dataclass(frozen=True)
class Measure:
    """The module of a measure, its inputs and its headline figures.

    Args:
        place: ``module:function`` inside ``orthotune.metrics``; the function returns a :class:`Measured`.
        headline: the scores that are printed first, most important first.
    """

    place: str
    headline: tuple[str, ...]

    @property
    def function(self) -> Callable[..., Measured]:
        """The function of the measure; imports its module."""
        module, _, name = self.place.partition(":")
        found: Any = getattr(importlib.import_module(f"orthotune.metrics.{module}"), name)
        return found


REGISTRY: dict[str, Measure] = {
    "canny": Measure("edges:measure_edges", ("iou", "accuracy", "f1")),
    "segmentation": Measure("segmentation:measure_segmentation", ("miou", "macc", "aacc")),
    "landmarks": Measure("landmarks:measure_landmarks", ("error_pixels",)),
    "subject": Measure("subject:measure_subject", ("dino", "clip_i", "clip_t", "lpips")),
    "fid": Measure("fid:measure_fid", ("fid",)),
    "energy": Measure("energy:measure_energy", ("before", "after", "change")),
}


def measure(name: str) -> Measure:
    """The measure of a given name.

    Raises:
        ConfigError: there is no measure of that name.

    Example:
        >>> measure("canny").headline
        ('iou', 'accuracy', 'f1')
    """
    if name not in REGISTRY:
        near = nearest(name, REGISTRY, 1)
        raise ConfigError(
            f"measure {name}", needed=", ".join(REGISTRY), do=f"Did you mean {near[0]}?" if near else None
        )
    return REGISTRY[name]
