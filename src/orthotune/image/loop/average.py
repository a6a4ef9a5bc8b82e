"""The exponential moving average (EMA) of the trained parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """The exponential moving average of parameters with bias correction.

    The sums begin at zero and are divided by their total weight (as the moments of Adam, Kingma & Ba 2015, section 3):
    after the first step the average is the parameter itself, not a mixture with its initial value.

    Args:
        parameters: the parameters by name. Sums are float32, or float64 for float64 parameters.
        decay: from 0 to below 1.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
        >>> average = Average({"weight": weight}, decay=0.5)
        >>> for value in (2.0, 8.0):
        ...     _ = weight.data.fill_(value)
        ...     average.update()
        >>> average.values()["weight"]  # (0.5 · 2 + 8) / 1.5
        tensor([6.])
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay, self.steps = dict(parameters), decay, 0
        self.sums = {
            name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32), requires_grad=False)
            for name, value in self.parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the average."""
        self.steps += 1
        for name, total in self.sums.items():
            total.lerp_(self.parameters[name].detach().to(total.dtype), 1 - self.decay)

    def values(self) -> dict[str, Tensor]:
        """The average of each parameter, in its dtype; the parameters themselves before the first step."""
        if not self.steps:
            return {name: value.detach().clone() for name, value in self.parameters.items()}
        held = 1 - self.decay**self.steps
        return {name: (total / held).to(self.parameters[name].dtype) for name, total in self.sums.items()}

    @torch.no_grad()
    def keep(self) -> None:
        """Replace the parameters by their average."""
        for name, value in self.values().items():
            self.parameters[name].copy_(value)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Context manager that replaces the parameters by their average and then restores them, bit for bit."""
        stashed = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.keep()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in stashed.items():
                    self.parameters[name].copy_(value)
