"""Warnings about the training of an adapter, derived from its measured facts, each with a remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orthotune.operations.diagnosis.rotation_facts import RotationFacts

#: The Neumann series diverges where the largest singular value of a skew block reaches 1.
SERIES_NORM = 0.9
#: Corresponds to a loss of half a percent of a vector's length. With five terms, a plane with the singular value q
#: keeps 1 - q^4 of its length, so q = 0.27; a loss of d contributes about 2 sqrt(2) d to the norm of R R^T - I.
ORTHOGONALITY = 0.014
#: Mean angle in radians. Of runs on the text world with blocks of 8 to 64, those up to 0.3 learned, and those from 0.5
#: on had lost most of the gain of the best run of the same block size; docs/evidence/diagnosis.md has the table.
FAR = 0.45
#: Angle in radians below which a weight changes by less than a hundredth of a bfloat16 rounding step.
STILL_ANGLE = 1e-5
MANY = 0.5


@dataclass(frozen=True)
class Advice:
    """A warning in one line, its layers, and a remedy. docs/evidence/diagnosis.md explains the limits."""

    warning: str
    layers: tuple[str, ...]
    remedy: str

    def __str__(self) -> str:
        shown = ", ".join(self.layers[:3]) + (f" and {len(self.layers) - 3} more" if len(self.layers) > 3 else "")
        return f"{self.warning} ({shown}). {self.remedy}."


def advise(facts: Sequence[RotationFacts], gradients: Mapping[str, float | None] | None = None) -> list[Advice]:
    """Warnings for the rotations of one adapter, the most serious first.

    Args:
        facts: the facts of every rotation.
        gradients: layer -> norm of the gradient of its parameters; None for a layer without a gradient.

    Example:
        >>> advise([])
        []
    """
    found: list[Advice] = []

    def warn(rows: Sequence[RotationFacts], warning: str, remedy: str) -> None:
        if rows:
            found.append(Advice(warning, tuple(dict.fromkeys(row.layer for row in rows)), remedy))

    broken = [row for row in facts if not math.isfinite(row.orthogonality_error + (row.skew_norm or 0))]
    warn(broken, "NaN or infinite values", "Go back to an earlier checkpoint and lower the learning rate")
    finite = [row for row in facts if row not in broken]
    near = [
        row for row in finite
        if row.map != "exact" and ((row.skew_norm or 0) > SERIES_NORM or row.orthogonality_error > ORTHOGONALITY)
    ]  # fmt: skip
    warn(
        near,
        f"The series is near divergence: skew norm up to {max((row.skew_norm or 0 for row in near), default=0):.2g}, "
        f"orthogonality error up to {max((row.orthogonality_error for row in near), default=0):.1e}",
        "Train with use_cayley_neumann=False, which stays exact, or lower the learning rate",
    )
    far = [row for row in finite if row.angle_mean > FAR and row not in near and row.transform == "blocks"]
    sizes = sorted({row.block_size for row in far})
    warn(
        far,
        f"Planes are rotated by more than {FAR} rad on average in blocks of {', '.join(map(str, sizes))}: "
        "the learning rate is too high for this block size",
        "Lower the learning rate, take smaller blocks, or set scaled=True",
    )
    still = [row for row in finite if row.angle_max < STILL_ANGLE]
    if finite and len(still) == len(finite):
        remedy = "Train it longer, with a higher learning rate, or check that its parameters are in the optimizer"
        warn(still, "The adapter does nothing: no plane is rotated", remedy)
    else:
        warn(
            [row for row in finite if row.dead > MANY],
            "More than half of the blocks have not moved",
            "Check that the layer is used by the model, or take it out of target_modules",
        )
    warn(
        [row for row in finite if (row.saturation or 0) > MANY],
        "More than half of the blocks are at the COFT radius",
        "Raise eps, or train without coft: the constraint decides what is learned, not the data",
    )
    gradients = gradients or {}
    if any(norm for norm in gradients.values()):
        none = tuple(layer for layer, norm in gradients.items() if not norm)
        if none:
            found.append(
                Advice("No gradient reaches a layer", none, "Take it out of target_modules, or check the model")
            )
    return found
