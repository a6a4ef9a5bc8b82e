"""Options for reading a file: facts that the file does not record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from orthotune.errors import ConfigError

CHOICES: dict[str, tuple[str, ...]] = {
    "series": ("current", "legacy"),
    "project": ("oft-control", "oft-db"),
    "boft_conv": ("rows", "scrambled"),
}


@dataclass(frozen=True)
class ReadOptions:
    """Facts that neither tensors nor config record. For None each format has its own rule.

    Attributes:
        coft: whether the run used COFT (oft-db, oft-control).
        eps: the COFT radius in the settings of the run (oft-db, oft-control).
        series: which Neumann polynomial trained the file: ``current``, or ``legacy`` for OneTrainer's commit of
            2025-11-14 and PEFT 0.16 and 0.17.
        project: which of the original programs wrote a shared ``.R``: they rotate in opposite directions.
        boft_conv: how BOFT of PEFT rotates convolutions: ``rows`` since 0.14, ``scrambled`` (legacy layout) before.

    Raises:
        ConfigError: a field has an unknown value, or the radius is no positive number.

    Example:
        >>> ReadOptions(series="legacy").eps is None
        True
    """

    coft: bool | None = None
    eps: float | None = None
    series: Literal["current", "legacy"] | None = None
    project: Literal["oft-control", "oft-db"] | None = None
    boft_conv: Literal["rows", "scrambled"] | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ConfigError(f"--{name.replace('_', '-')} {value}", needed=" or ".join(allowed))
        if self.eps is not None and not 0 < self.eps < math.inf:
            raise ConfigError(f"--eps {self.eps:g}", needed="a radius above 0")
