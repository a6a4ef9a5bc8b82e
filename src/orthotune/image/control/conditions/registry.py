"""The registry of kinds of control images."""

from __future__ import annotations

from orthotune.errors import ConfigError, nearest
from orthotune.image.control.conditions import canny, densepose, depth, landmarks, segmentation, sketch
from orthotune.image.control.conditions.kind import Condition

KINDS: dict[str, Condition] = {
    kind.name: kind for kind in (canny.KIND, segmentation.KIND, sketch.KIND, depth.KIND, densepose.KIND, landmarks.KIND)
}


def condition(name: str) -> Condition:
    """The kind of a given name.

    Raises:
        ConfigError: there is no kind of that name.

    Example:
        >>> condition("segm").sharp
        True
    """
    if name not in KINDS:
        close = nearest(name, KINDS, count=1)
        do = f"Did you mean {close[0]!r}?" if close else None
        raise ConfigError(f"condition {name!r}", needed=f"one of {', '.join(KINDS)}", do=do)
    return KINDS[name]
