"""A frozen map on the device of the weight that it is applied to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor


def placed(transform: Any, device: torch.device) -> Any:
    """The map with its tensors on a device; itself where they are there already.

    Example:
        >>> zeros = torch.zeros(2)
        >>> placed((zeros, "side"), torch.device("cpu"))[0] is zeros
        True
    """
    if isinstance(transform, Tensor):
        return transform if transform.device == device else transform.to(device)
    if isinstance(transform, tuple):
        parts = tuple(placed(part, device) for part in transform)
        return transform if all(a is b for a, b in zip(parts, transform, strict=True)) else parts
    if isinstance(transform, Mapping):
        moved = {key: placed(part, device) for key, part in transform.items()}
        return transform if all(moved[key] is part for key, part in transform.items()) else moved
    if is_dataclass(transform) and not isinstance(transform, type):
        old = {field.name: getattr(transform, field.name) for field in fields(transform)}
        new = {name: placed(value, device) for name, value in old.items()}
        changed = {name: value for name, value in new.items() if value is not old[name]}
        return replace(transform, **changed) if changed else transform
    return transform
