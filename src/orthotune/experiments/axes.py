"""The plane in which methods are compared, gain against forgetting: columns of the rows, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: Column to value; the task of a comparison decides which columns there are.
Row = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One axis of the plane.

    Args:
        column: the column of the rows; what was measured on test data is in ``test_COLUMN``.
        title: a few words for drawings.
        unit: of the values; empty for shares.
        larger_is_better: False for losses.

    Example:
        >>> Axis("gain", "gain on the target domain", "nats/token").label
        'gain on the target domain, nats/token'
    """

    column: str
    title: str = ""
    unit: str = ""
    larger_is_better: bool = True

    @property
    def label(self) -> str:
        """Title and unit."""
        return ", ".join(part for part in (self.title or self.column, self.unit) if part)


@dataclass(frozen=True)
class Axes:
    """The two axes of a comparison; the base model, which has gained and forgotten nothing, is at (0, 0).

    Args:
        gain: upwards.
        forgetting: to the right.

    Example:
        >>> kept = Axis("still_right", "change of the right answers")
        >>> axes = Axes(Axis("gain"), kept)
        >>> axes.point({"gain": 0.5, "still_right": -0.1}), axes.better
        ((0.5, 0.1), 'upper right')
    """

    gain: Axis
    forgetting: Axis

    @property
    def signs(self) -> tuple[int, int]:
        """By what to multiply the columns so that more gain and less forgetting are better."""
        return (1 if self.gain.larger_is_better else -1), (-1 if self.forgetting.larger_is_better else 1)

    @property
    def better(self) -> str:
        """The corner of a drawing in which the best points are."""
        gain, forgetting = self.signs
        return f"{'upper' if gain > 0 else 'lower'} {'left' if forgetting > 0 else 'right'}"

    def point(self, row: Mapping[str, Any], prefix: str = "") -> tuple[float, float] | None:
        """(gain, forgetting) of a row, more gain and less forgetting being better; None if one was not measured.

        Args:
            row: column to value.
            prefix: of both columns: ``test_`` for what was measured on test data.
        """
        gain, forgetting = row.get(prefix + self.gain.column), row.get(prefix + self.forgetting.column)
        if gain is None or forgetting is None:
            return None
        signs = self.signs
        return signs[0] * gain, signs[1] * forgetting


#: Axes of rows whose columns are called so.
AXES = Axes(Axis("gain"), Axis("forgetting", larger_is_better=False))
