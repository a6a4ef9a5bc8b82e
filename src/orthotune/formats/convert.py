"""Convert an adapter for another tool: lossless, approximate if permitted, or an error with the reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from orthotune.errors import ConfigError, UnsupportedLayerError, nearest
from orthotune.files.names import shortened
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.format import Format
from orthotune.formats.kinds import DENSE, DIFF, TRUNCATED, Verdict, kind_of
from orthotune.formats.peft.config_field import integer
from orthotune.formats.registry import targets
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.cayley import inverse_cayley
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.packing import pack, unpack
from orthotune.rotation.stages import stages_of

DIMS = "the target stores scales of convolutions in another shape, and the file does not record which layers are those"
ROWS = "the target has a scale in each layer, and the file does not record how many rows the weight has"

POINTS = (
    "the target has no rotation of a convolution's channels, only of all that its kernel sees, and the file does not "
    "record the sizes of kernels"
)
CHANNELS = "the format has no rotation of a convolution's channels by a transform other than blocks"

UNCHECKED = (
    "the blocks are assumed to fill their weights, which only --base can check: PEFT before 0.14 truncated the last "
    "block where the number of blocks did not divide the outputs"
)

BIAS = (
    "the tool that wrote the adapter maps the bias of a layer together with its output, and the target does not: both "
    "mean the same for layers without a bias only"
)

#: layer -> shape of its weight in the base, ``(out, in)`` or ``(out, in, *kernel)``
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Plan:
    """The plan of a conversion.

    Attributes:
        target: id of the format.
        verdict: the worst verdict of all layers.
        reasons: reason -> layers that are not converted without loss.
        needs_base: reason -> layers whose conversion depends on the shape of their weight.
        notes: assumptions that were not checked.
    """

    target: str
    verdict: Verdict
    reasons: Mapping[str, list[str]] = field(default_factory=dict)
    needs_base: Mapping[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def check_target(target: str) -> None:
    """Refuse a name that no target of a conversion has.

    Args:
        target: id of a format that can be written, or ``diff``.

    Raises:
        ConfigError: there is no such target; with the nearest name.

    Example:
        >>> check_target("comfyui")
    """
    known = [*targets(), DIFF]
    if target not in known:
        near = nearest(target, known)
        raise ConfigError(
            f"--to {target}", needed=f"one of {', '.join(known)}", do=f"Did you mean {near[0]}?" if near else None
        )


def plan(state: AdapterState, target: str, shapes: Shapes | None = None, *, linear: bool = False) -> Plan:
    """Check whether and how an adapter can be written for a target, without computing anything.

    Args:
        state: the adapter.
        target: id of a format that can be written.
        shapes: shapes of the weights of the base, as far as they are known.
        linear: all layers are linear, none is a convolution.

    Raises:
        ConfigError: there is no such target.

    Example:
        >>> plan(AdapterState({"lin": LayerState({"": torch.zeros(2, 3)})}), "lycoris").verdict
        'impossible'
    """
    if target == DIFF:
        raise ConfigError(f"a plan of {DIFF}", needed=f"one of {', '.join(targets())}", do="Export the adapter instead")
    check_target(target)
    shapes, can = shapes or {}, targets()[target]
    order: list[Verdict] = ["lossless", "approximate", "impossible"]
    worst = order[0]
    reasons: dict[str, list[str]] = {}
    needs: dict[str, list[str]] = {}
    for name, layer in {**state.layers, **state.transforms}.items():
        shape = shapes.get(name)
        found, reason = can.can_hold(_kind(layer, shape))
        if not can.channels and _maps_channels(layer, shape) and isinstance(layer, FamilyTransform) and not linear:
            found, reason = "impossible", CHANNELS
        if reason:
            reasons.setdefault(reason, []).append(name)
        worst = order[max(order.index(worst), order.index(found))]
        for needed in [] if shape is not None else _open(layer, can, linear, state):
            needs.setdefault(needed, []).append(name)
    truncated = [name for name, layer in state.layers.items() if layer.truncated and name not in shapes]
    notes: tuple[str, ...] = (UNCHECKED,) if truncated and TRUNCATED not in can.lossless else ()
    notes += (can.note,) if can.note and state.transforms else ()
    held = [one for one in state.transforms.values() if isinstance(one, FamilyTransform)]
    notes += (BIAS,) if any(one.with_bias for one in held) and not can.note else ()
    return Plan(target, worst, reasons, needs, notes)


def _kind(layer: FrozenMap, shape: Sequence[int] | None) -> str:
    if isinstance(layer, LayerState) and layer.truncated and shape is not None and not layer.runs_on(shape[0]):
        return TRUNCATED
    return kind_of(layer)


def _maps_channels(layer: FrozenMap, shape: Sequence[int] | None) -> bool:
    """Whether a layer maps the channels of a convolution with several points; True where the base must tell."""
    spec = layer.spec if isinstance(layer, LayerState | FamilyTransform) else None
    if spec is None or spec.conv == "kernel" or spec.side == "out" or getattr(layer, "embedding", False):
        return False
    return shape is None or math.prod(shape[2:]) > 1


def _over_kernel(layer: LayerState, points: int) -> LayerState:
    """The same rotation of ``(in, kernel)``: each element of a block stands once for every point of the kernel."""
    spec = replace(layer.spec, conv="kernel")
    if points == 1:
        return replace(layer, spec=spec)
    eye = torch.eye(points)[:, None]
    rotations = {}
    for part in layer.rotations:
        size = layer.block_size(part)
        Q = unpack(layer.vector(part), size)
        rotations[part] = pack((Q[:, :, None, :, None] * eye.to(Q)).reshape(-1, size * points, size * points))
    return replace(layer, rotations=rotations, spec=spec)


def _open(layer: FrozenMap, can: Format, linear: bool, state: AdapterState) -> list[str]:
    """What the conversion of a layer needs to know about the base."""
    if not isinstance(layer, LayerState):
        if isinstance(layer, FamilyTransform) and can.scale and layer.magnitude is None:
            return [ROWS]
        known = not isinstance(layer, Butterfly | FamilyTransform) or layer.magnitude is None or layer.dims or linear
        return [] if known or not can.scale_dims else [DIMS]
    found = []
    if not can.channels and not linear and layer.dims != 2 and _maps_channels(layer, None):
        found.append(POINTS)
    if can.scale and layer.magnitude is None:
        found.append(ROWS)
    elif can.scale_dims and layer.magnitude is not None and not layer.dims and not linear:
        found.append(DIMS)
    if layer.conv_reversed != can.conv_reversed and not layer.spec.exact and not layer.embedding and not linear:
        found.append(
            "the target rotates convolutions in the opposite direction, and the file does not record which layers are "
            "convolutions"
        )
    if layer.spec.shared and not can.shared and not _count_in_config(layer, state):
        found.append("one block is shared, and the file does not record how many blocks the layer has")
    return found


def _count_in_config(layer: LayerState, state: AdapterState) -> int:
    """The number of blocks of a shared layer, which PEFT before 0.14 records once for all layers; 0 if unknown."""
    patterned = state.config.get("rank_pattern")
    return 0 if not layer.truncated or patterned else integer(state.config, "r", 8)


def convert(
    state: AdapterState, target: str, shapes: Shapes | None = None, *, approximate: bool = False, linear: bool = False
) -> tuple[AdapterState, dict[str, float]]:
    """Convert an adapter to the layers that the writer of a target takes.

    Args:
        state: the adapter.
        target: id of a format that can be written.
        shapes: shapes of the weights of the base, as far as they are known.
        approximate: permit layers that the target holds only approximately.
        linear: all layers are linear, none is a convolution.

    Returns:
        The converted adapter, and layer -> error for each approximated layer: the spectral norm of the difference
        between the two rotations, which bounds the relative change of the weight.

    Raises:
        UnsupportedLayerError: a layer cannot be written, cannot without ``approximate``, or needs the base.

    Example:
        >>> from orthotune.rotation.spec import RotationSpec
        >>> state = AdapterState({"lin": LayerState({"": torch.full((2, 3), 0.1)}, RotationSpec(map="neumann"))})
        >>> converted, errors = convert(state, "peft-0.14", {"lin": (5, 6)}, approximate=True)
        >>> converted.layers["lin"].spec.map, errors["lin"] < 1e-3
        ('exact', True)
    """
    planned, shapes = plan(state, target, shapes, linear=linear), shapes or {}
    can = targets()[target]
    if planned.verdict == "impossible" or (planned.verdict == "approximate" and not approximate):
        raise UnsupportedLayerError(
            f"{len({n for names in planned.reasons.values() for n in names})} layers cannot be written for "
            f"{can.tool}" + ("" if planned.verdict == "impossible" else " without loss"),
            got="; ".join(f"{reason} ({shortened(names)})" for reason, names in planned.reasons.items()),
            do=DENSE if planned.verdict == "impossible" else f"Add --approximate, and see the error. {DENSE}",
        )
    if planned.needs_base:
        raise UnsupportedLayerError(
            f"{state.source or 'the adapter'} does not record enough for this conversion",
            got="; ".join(f"{reason} ({shortened(names)})" for reason, names in planned.needs_base.items()),
            do="Name the base with --base, or pass --linear if no layer is a convolution",
        )
    layers, errors = {}, {}
    known = {name: 2 for name in (*state.layers, *state.transforms)} if linear else {}
    known |= {name: len(shape) for name, shape in shapes.items()}
    for name, held in state.layers.items():
        layers[name], error = _layer(held, can, shapes.get(name), _count_in_config(held, state))
        layers[name] = replace(layers[name], dims=known.get(name, held.dims))
        if error is not None:
            errors[name] = error
    transforms: dict[str, FrozenMap] = {}
    for name, layer in state.transforms.items():
        assert isinstance(layer, Butterfly | FamilyTransform), "all other frozen maps were refused"
        moved = stages_of(layer) if isinstance(layer, Butterfly) and target == "orthotune" else layer
        if can.scale and moved.magnitude is None and name in shapes:
            moved = replace(moved, magnitude=torch.ones(shapes[name][0]))
        transforms[name] = replace(moved, dims=known.get(name, moved.dims))
    return replace(state, layers=layers, transforms=transforms), errors


def _layer(layer: LayerState, can: Format, shape: Sequence[int] | None, count: int) -> tuple[LayerState, float | None]:
    kind = kind_of(layer)
    if layer.conv_reversed:
        layer = layer.for_weight(shape or (1, 1))
    layer, error = layer.plain(), None
    if not can.channels and layer.spec.conv == "channels":
        layer = _over_kernel(layer, math.prod((shape or ())[2:]))
    if not can.scale and layer.magnitude is not None and bool((layer.magnitude == 1).all()):
        layer = replace(layer, magnitude=None)
    if kind not in can.lossless:
        exact = not any("neumann" in known for known in can.lossless)
        layer, error = _approximated(layer, exact, terms=5 if can.conv_reversed else layer.spec.terms)
    if can.conv_reversed:
        if len(shape or (1, 1)) > 2:
            layer = replace(layer, rotations={part: -v for part, v in layer.rotations.items()})
        layer = replace(layer, conv_reversed=True)
    if layer.spec.shared and not can.shared:
        if shape is not None:
            features = shape[0] if layer.spec.side == "out" else int(torch.Size(shape[1:]).numel())
            layer.runs_on(features)
            count = -(-features // layer.block_size())
        repeated = {"": layer.rotations[""].repeat(count, 1)}
        layer = replace(layer, rotations=repeated, spec=replace(layer.spec, shared=False))
    if can.scale and layer.magnitude is None:
        layer = replace(layer, magnitude=torch.ones((shape or (0,))[0]))
    return layer, error


def _approximated(layer: LayerState, exact: bool, terms: int) -> tuple[LayerState, float]:
    """The nearest layer with the exact map, or with the current series, and the error of its rotation."""
    R = replace(layer, rotations={"": layer.rotations[""].double()}).rotation()
    if exact:
        U, _, V = torch.linalg.svd(R)
        try:
            found = replace(layer, rotations={"": pack(inverse_cayley(U @ V))}, spec=replace(layer.spec, map="exact"))
        except torch.linalg.LinAlgError as fault:
            given, got = "the nearest rotation to a Neumann series", "an angle of pi, which has no exact parameters"
            raise UnsupportedLayerError(given, got=got, do=DENSE) from fault
    else:
        vector = layer.rotations[""].double()
        spec = replace(layer.spec, map="neumann", terms=terms)
        found = replace(layer, rotations={"": -vector if layer.spec.exact else vector}, spec=spec)
    error = float(torch.linalg.matrix_norm(found.rotation() - R, ord=2).max())
    return replace(found, rotations={"": found.rotations[""].float()}), error
