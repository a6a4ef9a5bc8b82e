"""DensePose maps from files, in the colours of the original model."""

from __future__ import annotations

from orthotune.image.control.conditions.kind import Condition

KIND = Condition("densepose", "DensePose maps, coloured by part and place", sharp=True)
