"""What memory a serving engine reserves for rotations, from the engine's own options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from orthotune.errors import ConfigError, nearest
from orthotune.rotation.blocks import nearest_divisor

#: Key of these settings among the additional options of an engine.
KEY = "orthotune"


@dataclass(frozen=True)
class ServingSettings:
    """What may be loaded, and what is therefore reserved for each slot of an adapter.

    Args:
        block_sizes: block sizes of the adapters. A layer of ``n`` features reserves ``n`` times their least common
            multiple; where a size does not divide ``n``, its nearest divisor counts, which PEFT takes there, too.
        outputs: ``"scale"`` reserves magnitudes and biases, ``"rotate"`` also rotations of the outputs
            (``side="out"``).

    Example:
        >>> ServingSettings().block_sizes
        (32,)
    """

    block_sizes: tuple[int, ...] = (32,)
    outputs: Literal["scale", "rotate"] = "scale"

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> ServingSettings:
        """The settings in the additional options of an engine.

        Args:
            options: all of them; the settings are under ``"orthotune"``.

        Raises:
            ConfigError: an unknown key, or a value that is none.

        Example:
            >>> ServingSettings.of({"orthotune": {"block_sizes": [32, 64]}}).block_sizes
            (32, 64)
        """
        given = (options or {}).get(KEY, {})
        if not isinstance(given, Mapping):
            raise ConfigError(f"additional_config[{KEY!r}]={given!r}", needed="a mapping of settings")
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                near = nearest(str(key), known)
                raise ConfigError(
                    f"additional_config[{KEY!r}][{key!r}]", needed=f"one of {', '.join(known)}",
                    do=f"Did you mean {near[0]}?" if near else None,
                )  # fmt: skip
        sizes = given.get("block_sizes", cls.block_sizes)
        sizes = [sizes] if isinstance(sizes, int) else sizes
        if not isinstance(sizes, Sequence) or not sizes or not all(type(b) is int and b > 1 for b in sizes):
            raise ConfigError(f"block_sizes={sizes!r}", needed="a list of block sizes of at least 2")
        outputs = given.get("outputs", cls.outputs)
        if outputs not in ("scale", "rotate"):
            raise ConfigError(f"outputs={outputs!r}", needed="scale or rotate")
        return cls(tuple(sizes), outputs)

    def block_size(self, features: int, held: int | None = None) -> int:
        """The size of the blocks that a layer reserves; a multiple of every size that it can load.

        Args:
            features: of the complete layer.
            held: how many of them this rank has; all if None.

        Example:
            >>> [ServingSettings((32, 48)).block_size(n) for n in (576, 100)]
            [96, 50]
        """
        held = features if held is None else held
        sizes = {nearest_divisor(features, size) for size in self.block_sizes}
        return math.lcm(*(size for size in sizes if held % size == 0))
