"""What a file does not say about itself, and its reader may be told."""

from __future__ import annotations

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
    """Answers for what no tensor and no config records; None leaves it to each format's rule.

    Attributes:
        coft: whether the run kept to a ball (oft-db, oft-control).
        eps: radius of the ball as the run was given it (oft-db, oft-control).
        series: which Neumann polynomial trained the file: ``current``, or ``legacy`` for OneTrainer's commit of
            2025-11-14 and PEFT 0.16 and 0.17.
        project: which of the original programs wrote a shared ``.R``: they turn in opposite directions.
        boft_conv: how PEFT's BOFT turned convolutions: ``rows`` since 0.14, ``scrambled`` before.

    Raises:
        ConfigError: a field holds none of its words, or a radius that is none.

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
                raise ConfigError(f"{name}={value!r}", needed=" or ".join(allowed))
        if self.eps is not None and not self.eps > 0:
            raise ConfigError(f"eps={self.eps}", needed="a radius above 0")
