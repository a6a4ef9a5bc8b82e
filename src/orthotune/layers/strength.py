"""How strongly the adapters of a layer act, by the protocol by which PEFT and diffusers change it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from orthotune.errors import ConfigError, OrthotuneError
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.parametrization.magnitude import Magnitudes
from orthotune.layers.parametrization.rotation import Rotation
from orthotune.layers.settings import Slot
from orthotune.rotation.strength import FULL, Kind, Strength, check_strength


class Strengths:
    """Strengths of the adapters of a layer, by name. A file knows none: it holds the adapter at 1."""

    active_adapters: Any
    slots: dict[str, Slot]
    oft_magnitude: Magnitudes
    rotations: Any
    changed: Any
    # a strength that was multiplied in for a while, so that it can be taken out again without rounding
    _scaling: tuple[float, dict[str, tuple[Strength, Strength]]] | None = None

    def strength(self, adapter: str) -> Strength:
        """How strongly an adapter acts, 1 unless it was changed."""
        return self.slots[adapter].strength if adapter in self.slots else FULL

    def set_scale(self, adapter: str, scale: float, kind: Kind | None = None) -> None:
        """Set the strength of an adapter; without effect if this layer does not have it.

        What is merged stays as it was merged, until it is merged anew.

        Args:
            adapter: its name.
            scale: 0 is the base, 1 the adapter, 0.5 half the angle of every plane; below 0 rotates back.
            kind: what lies between, see :data:`Kind`; as before if None, at first ``geodesic``.

        Raises:
            ConfigError: no finite number, no such blend, or a magnitude that has no power or no linear blend.
        """
        if adapter not in self.slots:
            return
        self.check_strength(adapter, scale, kind)
        before = self.strength(adapter)
        self._set(adapter, Strength(float(scale), before.kind if kind is None else kind))

    def check_strength(self, adapter: str, scale: float, kind: Kind | None = None) -> None:
        """Raise what :meth:`set_scale` would, and change nothing."""
        kind = self.strength(adapter).kind if kind is None else kind
        check_strength(scale, kind, f"scale={scale!r} for adapter '{adapter}'")
        if scale != 1 and kind == "geodesic":
            for rotation in self.rotations(adapter).values():
                if not isinstance(rotation, FamilyRotation) or rotation.weight.device.type == "meta":
                    continue
                if not rotation.lacks_basis:  # a merge computes the basis, and with it the power
                    self._check_power(adapter, rotation, scale)
        if scale == 1 or kind == "rotation" or adapter not in self.oft_magnitude:
            return
        layer = self.slots[adapter].settings.layer
        if kind == "linear":
            raise ConfigError(
                f"a linear blend of adapter '{adapter}' at layer '{layer}'", got="a magnitude beside the rotation",
                do="Use kind='geodesic', or 'rotation', which does not scale the magnitude",
            )  # fmt: skip
        magnitude = self.oft_magnitude[adapter].weight
        if magnitude.device.type != "meta" and bool((magnitude <= 0).any()):
            raise ConfigError(
                f"scale={scale} for adapter '{adapter}' at layer '{layer}'",
                got="a magnitude of 0 or below, which has no logarithm",
                do="Use kind='rotation', which does not scale the magnitude",
            )

    def _check_power(self, adapter: str, rotation: FamilyRotation, scale: float) -> None:
        try:
            rotation.power(scale)
        except OrthotuneError as error:
            raise ConfigError(
                f"scale={scale} for adapter '{adapter}' at layer '{self.slots[adapter].settings.layer}'",
                got=error.got, needed=error.needed, do="Use kind='linear'",
            ) from error  # fmt: skip

    def scale_layer(self, scale: float) -> None:
        """Multiply the strengths of the active adapters; :meth:`unscale_layer` gives them back as they were.

        Raises:
            ConfigError: as for :meth:`set_scale`; nothing was changed.
        """
        if scale == 1:
            return
        changes = {}
        for name in (name for name in self.active_adapters if name in self.slots):
            before = self.strength(name)
            self.check_strength(name, before.t * scale)
            changes[name] = (before, replace(before, t=before.t * scale))
        for name, (_, after) in changes.items():
            self._set(name, after)
        self._scaling = (scale, changes)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Divide the strengths of the active adapters, or set them to 1 without a number.

        Raises:
            ConfigError: ``scale`` is 0.
        """
        last = self._scaling
        for name in (name for name in self.active_adapters if name in self.slots):
            now = self.strength(name)
            if scale is None:
                self._set(name, replace(now, t=1.0))
            elif last is not None and last[0] == scale and name in last[1] and last[1][name][1] == now:
                self._set(name, last[1][name][0])  # a product and a quotient would round
            elif scale == 0:
                raise ConfigError("unscale_layer(0)", got="a strength that nothing is left of", do="Use set_scale")
            else:
                self._set(name, replace(now, t=now.t / scale))

    @contextmanager
    def at_strengths(self, strengths: Mapping[str, Strength]) -> Iterator[None]:
        """Other strengths until the end."""
        before = {name: self.strength(name) for name in strengths}
        for name, strength in strengths.items():
            self._set(name, strength)
        try:
            yield
        finally:
            for name, strength in before.items():
                self._set(name, strength)

    def _set(self, adapter: str, strength: Strength) -> None:
        self._scaling = None
        if strength == self.strength(adapter):
            return
        self.slots[adapter].strength = strength
        for rotation in cast("dict[str, Rotation]", self.rotations(adapter)).values():
            rotation.strength = strength
        self.changed()

    def scale_at(self, adapter: str, magnitude: Tensor) -> Tensor:
        """A magnitude at the adapter's strength."""
        strength = self.strength(adapter)
        return magnitude.pow(strength.t) if strength.partial and strength.kind == "geodesic" else magnitude
