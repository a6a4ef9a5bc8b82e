"""How strongly an adapter acts, and what lies between the base and the adapter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from orthotune.errors import ConfigError

#: ``geodesic``: ``R^t``, and the magnitude's logarithm times ``t``. ``linear``: ``W + t (W' - W)``. ``rotation``: the
#: rotation is blended linearly with the identity and the magnitude stays as it is, as some tools do with their files.
Kind = Literal["geodesic", "linear", "rotation"]


@dataclass(frozen=True)
class Strength:
    """Adapter strength ``t``: 0 is the base, 1 the adapter as trained; ``kind`` selects the interpolation.

    Example:
        >>> Strength(0.5).partial, Strength().partial
        (True, False)
    """

    t: float = 1.0
    kind: Kind = "geodesic"

    @property
    def partial(self) -> bool:
        """Whether it is another strength than the adapter's own."""
        return self.t != 1


#: the adapter's own strength
FULL = Strength()


def check_strength(t: object, kind: str | None, given: str = "") -> None:
    """Refuse what is no strength, and an interpolation that does not exist.

    Args:
        t: the strength.
        kind: the interpolation; None for the default.
        given: what the message calls the strength; ``--strength`` and the number if empty.

    Raises:
        ConfigError: ``t`` is no finite number, or there is no such ``kind``.

    Example:
        >>> check_strength(0.5, "geodesic")
    """
    if kind is not None and kind not in get_args(Kind):
        raise ConfigError(f"kind='{kind}'", needed=" or ".join(get_args(Kind)))
    if isinstance(t, Tensor | bool) or not isinstance(t, int | float) or not math.isfinite(t):
        raise ConfigError(given or f"--strength {t}", needed="a finite number; 0 is the base, 1 the adapter as trained")


def blended(R: Tensor, t: float) -> Tensor:
    """``I + t (R - I)``.

    Shapes: ``(..., b, b)``, returns the same.

    Example:
        >>> blended(torch.zeros(2, 2), 0.5).diagonal()
        tensor([0.5000, 0.5000])
    """
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return eye + t * (R - eye)
