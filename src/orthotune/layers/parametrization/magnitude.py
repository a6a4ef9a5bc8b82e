"""The magnitudes of a layer: one trained scale for every output, for each adapter."""

from __future__ import annotations

import re
from typing import Any, cast

from torch import Tensor, nn

_FORMER_NAME = re.compile(r"(^|\.)oft_magnitude\.[^.]+$")


class Magnitude(nn.Module):
    """The magnitude of one adapter, ``weight`` ``(outputs,)``.

    A module of its own, because code that copies, counts or filters the parameters of an adapter looks for the name of
    the adapter between two dots: ``oft_magnitude.default.weight``.
    """

    weight: nn.Parameter

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def extra_repr(self) -> str:
        return f"outputs={self.weight.numel()}"


class Magnitudes(nn.ModuleDict):
    """Adapter -> its magnitude. The state of a model from before these were modules is loaded, too."""

    def __getitem__(self, key: str) -> Magnitude:
        return cast(Magnitude, super().__getitem__(key))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for key in [prefix + name for name in self if prefix + name in state_dict]:
            state_dict[f"{key}.weight"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def present_name(name: str) -> str:
    """The name of a parameter by which an older checkpoint may know it, as it is now.

    Example:
        >>> present_name("lin.oft_magnitude.default"), present_name("lin.oft_R.default.weight")
        ('lin.oft_magnitude.default.weight', 'lin.oft_R.default.weight')
    """
    return f"{name}.weight" if _FORMER_NAME.search(name) else name
