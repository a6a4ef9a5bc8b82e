"""The report of loading an adapter on a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orthotune.files.names import escaped


@dataclass
class LoadReport:
    """The matched and unmatched layers of an adapter that was loaded on a model.

    Attributes:
        format: id of the format of the file.
        matched: name of a layer in the file -> name of the module, in a pipeline with the component before it.
        unmatched: names in the file for which the model has no module.
        untouched: modules of the model that could carry an adapter but have none in the file.
        frozen: modules whose adapter is applied as an exact weight transform and cannot be trained.
        warnings: further remarks.
        strength: interpolation for strengths other than 1, until ``set_scale`` names another kind: that of the tool
            that wrote the file, otherwise ``geodesic``.

    Example:
        >>> print(LoadReport("kohya_oft", {"oft_unet_blk_lin": "blk.lin"}, untouched=["blk.conv"]))
        kohya_oft: 1 of 1 layers loaded, all trainable.
        1 module without this adapter: blk.conv
    """

    format: str
    matched: dict[str, str] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)
    frozen: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    strength: str = "geodesic"

    def __str__(self) -> str:
        total = len(self.matched) + len(self.unmatched)
        lines = [f"{self.format}: {len(self.matched)} of {total} layers loaded, {self._trainable()}."]
        if self.unmatched:
            lines.append(f"{_count(self.unmatched, 'layer')} of the file without a module: {escaped(self.unmatched)}")
        if self.frozen:
            lines.append(f"{_count(self.frozen, 'layer')} frozen, run as exact weight maps: {escaped(self.frozen)}")
        if self.untouched:
            lines.append(f"{_count(self.untouched, 'module')} without this adapter: {escaped(self.untouched)}")
        if self.strength != "geodesic":
            lines.append(f"Strengths other than 1 are of kind '{self.strength}', as in the tool that wrote the file.")
        return "\n".join([*lines, *(f"Note: {text}" for text in self.warnings)])

    def _trainable(self) -> str:
        if not self.frozen:
            return "all trainable"
        return "none trainable" if len(self.frozen) == len(self.matched) else f"{len(self.frozen)} of them frozen"


def _count(items: Iterable[str], noun: str) -> str:
    count = len(list(items))
    return f"{count} {noun}{'' if count == 1 else 's'}"
