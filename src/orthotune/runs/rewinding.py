"""Choose the strengths at which a finished model is used: what it gains against what it forgets.

A strength is a number for a group of layers. Its gradient is read off the parameters' own
(:mod:`orthotune.runs.layer_strengths`), so that strengths are trained in a few steps with everything else frozen.
"""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from orthotune.runs.layer_strengths import SMALLEST, LayerStrengths

By = Literal["one", "kind", "projection", "depth", "layer"]
#: Strengths of the curve, before those near its best point.
CURVE = (0.0, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
#: A strength never leaves this range while it is trained; beyond the adapter nothing was measured in training.
LARGEST = 1.3
_DEPTH = re.compile(r"\.(\d+)\.")
_ATTENTION = re.compile(r"[Aa]ttn|[Aa]ttention|\.(?:[qkvo]_proj|query|key|value|out_proj|c_attn|qkv|dense)$")
_MLP = re.compile(r"mlp|ffn|feed_?forward|(?:gate|up|down)_proj$|\.fc\d$|\.wi|\.wo$|expert|\.ff(_context)?\.")


@dataclass(frozen=True)
class Losses:
    """Losses of the rows of either domain: texts in nats, images in the units of the denoiser's loss.

    Attributes:
        new, old: per row ``(sum of losses, number of tokens or draws)``.
    """

    new: tuple[tuple[float, int], ...]
    old: tuple[tuple[float, int], ...]

    @property
    def means(self) -> tuple[float, float]:
        """Mean loss on the new and on the source domain."""
        return _mean(self.new), _mean(self.old)


@dataclass(frozen=True)
class Point:
    """One choice of strengths, measured.

    Attributes:
        strengths: group -> strength.
        gain: mean loss that the target domain became easier by.
        forgetting: mean loss that the source domain became harder by.
    """

    strengths: Mapping[str, float]
    gain: float
    forgetting: float

    def worth(self, weight: float) -> float:
        """What is gained less ``weight`` times what is forgotten; old texts that became easier count for nothing."""
        return self.gain - weight * max(0.0, self.forgetting)


def groups_of(names: Sequence[str], by: By) -> dict[str, str]:
    """The group of each layer.

    Args:
        names: of the layers in the model.
        by: ``one`` group; the ``kind`` of a layer, attention or mlp; the last part of its name (``projection``); its
            ``depth``; every ``layer`` for itself.

    Returns:
        layer -> group.

    Example:
        >>> groups_of(["m.layers.0.self_attn.q_proj", "m.layers.0.mlp.up_proj"], "kind")
        {'m.layers.0.self_attn.q_proj': 'attention', 'm.layers.0.mlp.up_proj': 'mlp'}
    """
    return {name: _group(name, by) for name in names}


def _group(name: str, by: By) -> str:
    if by == "one":
        return "all"
    if by == "layer":
        return name
    if by == "projection":
        return name.rpartition(".")[2]
    if by == "depth":
        found = _DEPTH.search(f".{name}.")
        return f"layer {found[1]}" if found else "no layer"
    if _MLP.search(name):
        return "mlp"
    return "attention" if _ATTENTION.search(name) else "others"


class Rewinding(ABC):
    """A finished model, and how its losses on held-out data of two domains are computed.

    Args:
        model: the adapted or trained model.
        layers: its strengths.
    """

    def __init__(self, model: nn.Module, layers: LayerStrengths) -> None:
        self.model, self.layers = model, layers
        self.base = self.measure(dict.fromkeys(layers.names, 0.0))

    @abstractmethod
    def losses(self, domain: str) -> Sequence[tuple[float, int]]:
        """The loss of each row at the present strengths, without gradients.

        Args:
            domain: ``new`` or ``old``.

        Returns:
            Per row, sum and count.
        """

    @abstractmethod
    def backward(self, domain: str, amount: int, factor: float, draw: random.Random) -> None:
        """Add the gradients of ``factor`` times the mean loss of some rows.

        Args:
            domain: ``new`` or ``old``.
            amount: tokens of texts, or images.
            factor: of the loss.
            draw: chooses the rows.
        """

    def measure(self, strengths: Mapping[str, float]) -> Losses:
        """The losses at strengths of layers; the layers keep them.

        Args:
            strengths: layer -> strength.
        """
        self.layers.set(strengths)
        new, old = (tuple(self.losses(domain)) for domain in ("new", "old"))
        return Losses(new, old)

    def point(self, strengths: Mapping[str, float], groups: Mapping[str, str]) -> Point:
        """Strengths of groups, measured.

        Args:
            strengths: group -> strength.
            groups: layer -> group.
        """
        losses = self.measure({name: strengths[group] for name, group in groups.items()})
        (new_before, old_before), (new, old) = self.base.means, losses.means
        return Point(dict(strengths), new_before - new, old - old_before)

    def curve(self, weight: float, strengths: Sequence[float] = CURVE) -> list[Point]:
        """One strength for all layers: those of ``strengths``, and the best one of a parabola through the best three.

        Args:
            weight: see :meth:`Point.worth`.
            strengths: in ascending order.

        Returns:
            Points in ascending order of strength.
        """
        groups = groups_of(self.layers.names, "one")
        points = {t: self.point({"all": t}, groups) for t in strengths}
        best = max(points, key=lambda t: points[t].worth(weight))
        near = sorted(strengths)
        place = near.index(best)
        if 0 < place < len(near) - 1:
            three = near[place - 1 : place + 2]
            between = _vertex(three, [points[t].worth(weight) for t in three])
            if between is not None and min(abs(between - t) for t in three) > 0.02:
                points[between] = self.point({"all": between}, groups)
        return [points[t] for t in sorted(points)]

    def train(
        self, groups: Mapping[str, str], start: float, weight: float, *,
        steps: int = 40, amount: int = 1024, rate: float = 0.05, seed: int = 0,
        say: Callable[[int], None] | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Train the strengths of groups by Adam on ``new + weight * old``, everything else frozen.

        Args:
            groups: layer -> group.
            start: the strength of all groups at first.
            weight: of the source domain in the loss.
            steps: optimizer steps; the rate falls to nothing along a cosine.
            amount: tokens or images of each domain in a step.
            rate: of the first step.
            seed: of the choice of rows.
            say: called with the number of each finished step.

        Returns:
            group -> strength, within 0.02 and 1.3.
        """
        names = sorted(set(groups.values()))
        values = torch.full((len(names),), start, dtype=torch.float64)
        values.requires_grad_(True)
        optimizer = torch.optim.Adam([values], lr=rate, betas=(0.8, 0.95))
        draw = random.Random(seed)
        with _trainable(self.model):
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
                now = dict(zip(names, values.tolist(), strict=True))
                self.layers.set({name: now[group] for name, group in groups.items()})
                for domain, factor in (("new", 1.0), ("old", weight)):
                    self.backward(domain, amount, factor, draw)
                by_group = dict.fromkeys(names, 0.0)
                for name, gradient in self.layers.gradients().items():
                    by_group[groups[name]] += gradient
                values.grad = torch.tensor([by_group[name] for name in names], dtype=torch.float64)
                optimizer.step()
                with torch.no_grad():
                    values.clamp_(SMALLEST, LARGEST)
                if say is not None:
                    say(step + 1)
        return {name: round(value, 4) for name, value in zip(names, values.tolist(), strict=True)}


def difference(one: Losses, other: Losses) -> dict[str, tuple[float, float]]:
    """How much ``one`` is above ``other`` on either domain, with the half-width of its 95 % interval.

    The rows are taken as independent: neighbouring rows of one document are not, so that the interval is rather too
    narrow.

    Args:
        one: losses of rows.
        other: losses of the same rows.

    Returns:
        domain -> (difference, half of the interval), mean losses; the interval of one row alone is infinite.

    Example:
        >>> a, b = Losses(((4.0, 2), (6.0, 2)), ((1.0, 1),)), Losses(((2.0, 2), (4.0, 2)), ((1.0, 1),))
        >>> difference(a, b)["new"]
        (1.0, 0.0)
    """
    return {domain: _difference(getattr(one, domain), getattr(other, domain)) for domain in ("new", "old")}


def _mean(losses: Sequence[tuple[float, int]]) -> float:
    return sum(nats for nats, _ in losses) / sum(tokens for _, tokens in losses)


def _difference(one: Sequence[tuple[float, int]], other: Sequence[tuple[float, int]]) -> tuple[float, float]:
    tokens = sum(count for _, count in one)
    mean = sum(a - b for (a, _), (b, _) in zip(one, other, strict=True)) / tokens
    if len(one) < 2:
        return mean, math.inf
    # The error of a ratio: what each row adds beyond its share of the mean.
    beyond = [a - b - mean * count for (a, count), (b, _) in zip(one, other, strict=True)]
    error = math.sqrt(len(one) / (len(one) - 1) * sum(value**2 for value in beyond)) / tokens
    return mean, 1.96 * error


def _vertex(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Where the parabola through three points is highest; None if it has no highest point between them."""
    (a, b, c), (p, q, r) = x, y
    curvature = ((r - q) / (c - b) - (q - p) / (b - a)) / (c - a)
    if curvature >= 0:
        return None
    found = (a + b) / 2 - (q - p) / (b - a) / (2 * curvature)
    return round(found, 3) if a < found < c else None


class _trainable:
    """Gradients of everything that was trained, and a model in evaluation mode, until the end."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __enter__(self) -> None:
        self.was = self.model.training
        self.model.eval()
        self.model.zero_grad(set_to_none=True)

    def __exit__(self, *_: object) -> None:
        self.model.zero_grad(set_to_none=True)
        self.model.train(self.was)
