"""Combine several adapters into one, at one layer, or in a model by ``add_weighted_adapter``."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.merge_utils import ties
from torch import Tensor, nn

from orthotune.errors import ConfigError, OrthotuneError, UnsupportedLayerError, nearest
from orthotune.formats.adapter_state import LayerState
from orthotune.formats.peft.fields import fields_of_spec
from orthotune.formats.peft.layer_settings import in_common
from orthotune.layers.base import OFTLayer
from orthotune.layers.embedding import Embedding
from orthotune.layers.experts import ParamWrapper
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.rotation.cayley import inverse_cayley
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.geodesic import nearest_rotation
from orthotune.rotation.mean import geodesic_combination, logarithms, product
from orthotune.rotation.packing import pack, unpack
from orthotune.rotation.spec import RotationSpec
from orthotune.tuner.admission import refuse_name
from orthotune.tuner.config import OFTConfig
from orthotune.tuner.family_combination import joint_family
from orthotune.tuner.places import adapted_layers, plain_name

CombinationType = Literal["geodesic", "product", "tangent", "ties"]
TYPES = ("geodesic", "product", "tangent", "ties")
#: Largest distance of a Neumann series from the nearest rotation, so that the nearest one is unambiguous.
_SERIES = 0.5
#: Relative size of a sum of logarithms below which it is rounding: adapters are stored in float32, many in bfloat16.
_ROUNDING = 2**-8
#: Largest element of a Cayley parameter; beyond it the angle is pi up to float32 rounding.
_LARGEST = 1e6


@dataclass(frozen=True)
class Combination:
    """The method and the weights of a combination.

    Args:
        weights: one strength for each adapter: 1 is the adapter as trained, 0.5 half of every angle, a negative value
            the inverse.
        kind: ``geodesic``, ``product``, ``tangent`` or ``ties``.
        density: for ``ties``, the share of the parameters that is kept, above 0 and at most 1.
        majority_sign_method: for ``ties``, PEFT's ``total`` or ``frequency``.
        magnitude_correction: for ``tangent`` and ``ties``: the sum of the logarithms is scaled, layer by layer, to the
            Frobenius norm ``|w_1| |log R_1| + |w_2| |log R_2| + ..``, so that directions that cancel each other do not
            make the combination smaller. After OrthoMerge, arXiv 2602.05943, which averages with such a correction.

    Raises:
        ConfigError: an argument is not allowed, or does not fit the others.
    """

    weights: Sequence[float]
    kind: CombinationType = "geodesic"
    density: float | None = None
    majority_sign_method: Literal["total", "frequency"] = "total"
    magnitude_correction: bool = False

    def __post_init__(self) -> None:
        if self.kind not in TYPES:
            raise ConfigError(
                f"combination_type='{self.kind}'", needed=" or ".join(TYPES),
                do="A LoRA cannot be added to this model: orthotune combine A:0.7 B:0.3 --type svd_lora --base BASE "
                "--out C" if str(self.kind) == "svd_lora" else None,
            )  # fmt: skip
        if not self.weights or not all(math.isfinite(weight) for weight in self.weights):
            raise ConfigError(f"weights {list(self.weights)}", needed="one finite number for each adapter")
        if (self.kind == "ties") != (self.density is not None):
            raise ConfigError(
                "density", got=f"{self.density} for '{self.kind}'", needed="a share with ties, and only with ties"
            )
        if self.density is not None and not 0 < self.density <= 1:
            raise ConfigError(f"density={self.density}", needed="above 0, at most 1")
        if self.magnitude_correction and self.kind not in ("tangent", "ties"):
            raise ConfigError(
                f"magnitude_correction with combination_type='{self.kind}'", needed="tangent or ties, which add up "
                "logarithms", do="Choose one of these, or leave the correction out",
            )  # fmt: skip

    def of_any(
        self, name: str, layers: Sequence[LayerState | FamilyTransform | None]
    ) -> tuple[LayerState | FamilyTransform, float]:
        """:meth:`joint` of blocks, or :meth:`joint_family` of another transform.

        Raises:
            UnsupportedLayerError: as these, or the adapters have different transforms.
        """
        family = [layer for layer in layers if isinstance(layer, FamilyTransform)]
        blocks = [layer for layer in layers if isinstance(layer, LayerState)]
        if not family:
            return self.joint(name, [layer if isinstance(layer, LayerState) else None for layer in layers])
        if blocks:
            raise UnsupportedLayerError(
                f"combining layer '{name}'", got=f"blocks and the transform '{family[0].spec.transform}'",
                needed="one transform", do="Activate them together, or use `orthotune combine --type svd_lora`",
            )  # fmt: skip
        return self.joint_family(name, [layer if isinstance(layer, FamilyTransform) else None for layer in layers]), 0.0

    def joint(self, name: str, layers: Sequence[LayerState | None]) -> tuple[LayerState, float]:
        """Combine one layer of several adapters; also returns the distance of Neumann series from rotations.

        An adapter without the layer counts as the identity. Blocks of different sizes are joined into blocks of their
        least common multiple.

        Raises:
            UnsupportedLayerError: the layers have no common form; the message has the reason.
        """
        held = [layer for layer in layers if layer is not None]
        first = held[0]
        _check(name, held)
        rotations, off = {}, 0.0
        blocks: list[Tensor | None]
        for part in first.rotations:
            blocks = []
            for layer in layers:
                found, far = (None, 0.0) if layer is None else _rotation(name, layer, part)
                blocks.append(found)
                off = max(off, far)
            alike, shared = _alike(name, blocks, [layer is not None and layer.spec.shared for layer in layers])
            try:
                rotations[part] = self.packed(self.rotation(alike, first.spec.side == "out")).float()
            except OrthotuneError as error:
                raise UnsupportedLayerError(f"layer '{name}': {error.given}", got=error.got, do=error.do) from error
        magnitude = self._magnitude(name, layers, first.spec.side)
        spec = RotationSpec(side=first.spec.side, shared=shared, conv=first.spec.conv)
        made = LayerState(rotations, spec, magnitude, first.embedding, truncated=first.truncated, dims=first.dims)
        return made, off

    def joint_family(self, name: str, layers: Sequence[FamilyTransform | None]) -> FamilyTransform:
        """Combine one layer of several adapters of another transform than blocks.

        Raises:
            UnsupportedLayerError: no map of the transform is the combination; the message has the reason.
        """
        made = joint_family(self, name, layers)
        magnitude = self._magnitude(name, layers, made.spec.side)
        return replace(made, magnitude=magnitude, spec=replace(made.spec, magnitude=magnitude is not None))

    def rotation(self, R: Tensor, last_first: bool) -> Tensor:
        """One rotation of several, without what a series or a magnitude adds.

        Shapes: ``R`` ``(adapters, ..., b, b)`` float64, returns ``(..., b, b)``.
        """
        if self.kind == "geodesic":
            return geodesic_combination(R, self.weights)
        if self.kind == "product":
            return product(R, self.weights, last_first=last_first)
        return torch.linalg.matrix_exp(unpack(self.summed(pack(logarithms(R))), R.shape[-1]))

    def packed(self, found: Tensor) -> Tensor:
        """The stored parameters of a rotation.

        Raises:
            OrthotuneError: an angle of pi.
        """
        try:
            Q = inverse_cayley(found)
        except torch.linalg.LinAlgError:
            Q = torch.full_like(found, math.inf)
        if not bool((Q.abs() < _LARGEST).all()):
            raise OrthotuneError(
                "the combined rotation", got="an angle of pi, which the Cayley parametrization cannot represent",
                do="Change the weights a little",
            )  # fmt: skip
        return pack(Q)

    def summed(self, tangents: Tensor) -> Tensor:
        """One direction in the Lie algebra of several, of packed logarithms or angles ``(adapters, ...)``."""
        found = self._summed(tangents)
        if not self.magnitude_correction:
            return found
        lengths = tangents.flatten(1).norm(dim=1)
        wanted = sum(abs(weight) * float(length) for weight, length in zip(self.weights, lengths, strict=True))
        now = float(found.norm())
        # Directions that cancel each other leave nothing but the rounding of their files, which is not to be scaled.
        return found * (wanted / now) if now > _ROUNDING * wanted else found

    def _summed(self, tangents: Tensor) -> Tensor:
        weights = torch.tensor(self.weights, dtype=tangents.dtype, device=tangents.device)
        if self.kind == "ties":
            assert self.density is not None
            summed: Tensor = ties(list(tangents), weights, self.density, self.majority_sign_method)
            return summed
        return torch.einsum("k,k...->...", weights, tangents)

    def _magnitude(self, name: str, layers: Sequence[LayerState | FamilyTransform | None], side: str) -> Tensor | None:
        scales = [None if layer is None else layer.magnitude for layer in layers]
        given = [scale for scale in scales if scale is not None]
        if not given:
            return None
        if self.kind == "product" and side == "out" and any(scale is not None for scale in scales[:-1]):
            raise UnsupportedLayerError(
                f"layer '{name}'", got="a magnitude between two rotations of the outputs, which no single adapter has",
                do="Combine with 'geodesic' or 'tangent'",
            )  # fmt: skip
        if any(bool((scale <= 0).any()) for scale in given):
            raise UnsupportedLayerError(f"layer '{name}'", got="a magnitude of 0 or below, which has no logarithm")
        if len({scale.numel() for scale in given}) > 1:
            raise UnsupportedLayerError(f"layer '{name}'", got="magnitudes of different sizes")
        one = torch.ones(given[0].numel(), dtype=torch.float64, device=given[0].device)
        logs = torch.stack([one.log() if s is None else s.double().flatten().log() for s in scales])
        return self._summed(logs).exp().float()


def _check(name: str, held: Sequence[LayerState]) -> None:
    first, where = held[0], f"layer '{name}'"
    for what in ("side", "embedding", "truncated", "conv"):
        found = sorted({str(getattr(layer.spec if what == "conv" else layer, what)) for layer in held})
        if len(found) > 1:
            raise UnsupportedLayerError(
                where, got=f"{what} {' and '.join(found)}", needed="the same value in all adapters",
                do="No single rotation equals both: merge one adapter, or activate both together",
            )  # fmt: skip
    if any(layer.rotations.keys() != first.rotations.keys() for layer in held):
        raise UnsupportedLayerError(where, got="adapters with different parts", needed="the same parts")
    if any(layer.conv_reversed for layer in held):
        raise UnsupportedLayerError(
            where, got="a file whose convolutions rotate the other way, without a record of which layers those are",
            do="Convert it first: orthotune convert ADAPTER OUT --to orthotune --base BASE",
        )  # fmt: skip


def _rotation(name: str, layer: LayerState, part: str) -> tuple[Tensor, float]:
    wide = {key: vector.double() for key, vector in layer.rotations.items()}
    R = replace(layer, rotations=wide).rotation(part)
    if not bool(R.isfinite().all()):
        raise UnsupportedLayerError(f"layer '{name}'", got="NaN or infinite values")
    if layer.spec.exact:
        return R, 0.0
    try:
        near = nearest_rotation(R, _SERIES)
    except OrthotuneError as error:
        raise UnsupportedLayerError(
            f"layer '{name}'", got=f"a Neumann series that is far from any rotation: {error.got}",
            do="Combine with svd_lora, or convert the adapter first",
        ) from error  # fmt: skip
    return near, float(torch.linalg.matrix_norm(near - R, ord=2).max())


def _alike(name: str, blocks: Sequence[Tensor | None], shared: Sequence[bool]) -> tuple[Tensor, bool]:
    """Blocks ``(adapters, rows, b, b)`` of one size and number, and whether they are shared blocks."""
    held = [(R, own) for R, own in zip(blocks, shared, strict=True) if R is not None]
    size = math.lcm(*(R.shape[-1] for R, _ in held))
    full = [R.shape[0] * R.shape[-1] for R, own in held if not own]
    copies = [R.shape[0] for R, own in held if own]  # a shared block is stored once for each expert
    together = not full
    if len(set(full)) > 1 or len(set(copies)) > 1 or (full and copies and full[0] % copies[0]):
        counts = ", ".join(f"{R.shape[0]} x {R.shape[-1]}{' shared' * own}" for R, own in held)
        raise UnsupportedLayerError(f"layer '{name}'", got=f"blocks {counts}", needed="blocks for the same weight")
    features = full[0] if full else copies[0] * size
    if features % size or (copies and (features // copies[0]) % size):
        raise UnsupportedLayerError(
            f"layer '{name}'",
            got=f"blocks of {' and '.join(str(R.shape[-1]) for R, _ in held)} in {features} features",
            needed="sizes with a common multiple that divides the features",
        )  # fmt: skip
    out = []
    for R, own in zip(blocks, shared, strict=True):
        if R is None:
            eye = torch.eye(size, dtype=torch.float64, device=held[0][0].device)
            out.append(eye.expand(features // size, size, size))
            continue
        rows = R.repeat_interleave(features // (R.shape[0] * R.shape[-1]), 0) if own else R
        groups = rows.view(features // size, -1, *R.shape[1:])
        out.append(groups[:, 0] if R.shape[-1] == size else torch.stack([torch.block_diag(*group) for group in groups]))
    return torch.stack(out), together


def add_weighted_adapter(
    tuner: BaseTuner,
    adapters: Sequence[str],
    weights: Sequence[float],
    adapter_name: str | None = None,
    combination_type: CombinationType = "geodesic",
    density: float | None = None,
    majority_sign_method: Literal["total", "frequency"] = "total",
    magnitude_correction: bool = False,
) -> str:
    """Add an adapter that combines others, and return its name; the new adapter is not active.

    Args:
        tuner: the model of adapters.
        adapters: their names; the strengths that are set for them are ignored.
        weights: one strength for each adapter, 1 is the adapter as trained; they need not sum to 1.
        adapter_name: name of the new adapter; None for ``A_then_B_product`` or ``A_and_B_geodesic``.
        combination_type: ``geodesic``: the weighted mean on the geodesics (Karcher), scaled by the sum of the
            weights. ``product``: ``R_1^w1 R_2^w2 ...``, the first acts first, equal to activating the adapters in this
            order at these strengths. ``tangent``: ``exp(w_1 log R_1 + ...)``. ``ties``: as ``tangent``, with PEFT's
            TIES of the logarithms. Only the product depends on the order.
        density: share of the parameters that ``ties`` keeps.
        majority_sign_method: PEFT's option of ``ties``.
        magnitude_correction: for ``tangent`` and ``ties``, see :class:`Combination`.

    Raises:
        ConfigError: an adapter does not exist, the new name exists already, or an option is not allowed.
        UnsupportedLayerError: the adapters have no common form at a layer. Nothing was changed.

    Example:
        >>> model.add_weighted_adapter(["style", "subject"], [0.7, 0.3], "both")  # doctest: +SKIP
        'both'
    """
    how = Combination(tuple(weights), combination_type, density, majority_sign_method, magnitude_correction)
    if len(adapters) != len(weights):
        raise ConfigError(f"{len(weights)} weights", needed=f"one for each of the {len(adapters)} adapters")
    _check_names(tuner, adapters)
    name = adapter_name or name_of(adapters, combination_type)
    refuse_name(name)
    if name in tuner.peft_config:
        raise ConfigError(f"adapter name '{name}'", got="an existing adapter of that name", needed="an unused name")
    joint = _joint_layers(tuner.model, adapters, how)
    tuner.peft_config[name] = _config(joint, tuner.peft_config[adapters[0]])
    active = list(tuner.active_adapters)
    try:
        tuner.inject_adapter(tuner.model, name)
        _fill(joint, name)
    except BaseException:
        tuner.delete_adapter(name)
        raise
    tuner.set_adapter(active, inference_mode=_frozen(tuner, active))
    return name


def name_of(adapters: Sequence[str], combination_type: str) -> str:
    """A name for a combination, with the order of the adapters where it matters.

    Args:
        adapters: their names.
        combination_type: as in :func:`add_weighted_adapter`.

    Example:
        >>> name_of(["A", "B"], "product"), name_of(["A", "B"], "geodesic")
        ('A_then_B_product', 'A_and_B_geodesic')
    """
    between = "_then_" if combination_type == "product" else "_and_"
    return f"{between.join(adapters)}_{combination_type}".replace(".", "_")


class Joint:
    """A layer of the model and the combination of its adapters."""

    def __init__(self, layer: OFTLayer, key: str, state: LayerState | FamilyTransform) -> None:
        self.layer, self.key, self.state = layer, key, state

    @property
    def target(self) -> str:
        """Its name in ``target_modules`` or ``target_parameters``."""
        return f"{self.key}.{self.layer.parameter_name}" if isinstance(self.layer, ParamWrapper) else self.key


def _check_names(tuner: BaseTuner, adapters: Sequence[str]) -> None:
    for adapter in adapters:
        if adapter not in tuner.peft_config:
            near = nearest(adapter, tuner.peft_config)
            raise ConfigError(
                f"adapter '{adapter}'", got=f"adapters {sorted(tuner.peft_config)}",
                do=f"Did you mean {near[0]}?" if near else None,
            )  # fmt: skip
        config = tuner.peft_config[adapter]
        if config.modules_to_save or config.bias != "none":
            raise ConfigError(
                f"combining adapter '{adapter}'", got="parameters that it replaces (modules_to_save, bias)",
                needed="adapters of rotations only",
            )  # fmt: skip


def _joint_layers(model: nn.Module, adapters: Sequence[str], how: Combination) -> list[Joint]:
    found, off = [], {}
    for key, layer in model.named_modules():
        if not isinstance(layer, OFTLayer) or not any(name in layer.oft_settings for name in adapters):
            continue
        key = plain_name(key)
        for name in adapters:
            if layer.frozen_map(name) is not None:
                raise UnsupportedLayerError(
                    f"layer '{key}'", got=f"adapter '{name}', a frozen map of the weight", needed="rotations"
                )
        states = [_state(layer, name) if name in layer.oft_settings else None for name in adapters]
        state, off[key] = how.of_any(key, states)
        found.append(Joint(layer, key, state))
    warn_series(off)
    return found


def warn_series(off: dict[str, float]) -> None:
    """Warn about the distance of Neumann series from the rotations that replaced them.

    Args:
        off: layer -> spectral norm of the difference, relative to the weight.
    """
    worst = max(off, key=lambda key: off[key], default=None)
    if worst is not None and off[worst] > 0:
        warnings.warn(
            "Adapters with a Neumann series were replaced by the nearest rotations: the relative change of a weight "
            f"is at most {off[worst]:.2g}, in layer '{worst}'.",
            stacklevel=4,
        )


@torch.no_grad()
def _state(layer: OFTLayer, name: str) -> LayerState | FamilyTransform:
    rotations: dict[str, Any] = dict(layer.rotations(name))
    if any(isinstance(rotation, FamilyRotation) for rotation in rotations.values()):
        if set(rotations) != {""}:
            raise UnsupportedLayerError(
                f"layer '{layer.slots[name].settings.layer}'", got="several matrices in one layer, under a transform",
                needed="a layer of one matrix", do="Activate the adapters together",
            )  # fmt: skip
        made: FamilyTransform = rotations[""].frozen_transform(
            layer.oft_magnitude[name].weight.detach() if name in layer.oft_magnitude else None,
            isinstance(layer, Embedding),
        )
        return made
    vectors = {}
    for part, rotation in layer.rotations(name).items():
        v = rotation.weight.detach()
        # The COFT radius depends on the number of blocks of one expert.
        vectors[part] = rotation.spec.within_ball(v.view(rotation.copies, -1, v.shape[-1])).reshape(v.shape)
    magnitude = layer.oft_magnitude[name].weight.detach() if name in layer.oft_magnitude else None
    spec = replace(layer.oft_settings[name].spec, eps=None)
    return LayerState(vectors, spec, magnitude, isinstance(layer, Embedding))


def _config(joint: Sequence[Joint], like: Any) -> OFTConfig:
    usual, own = in_common({one.target: one.state.spec for one in joint})
    modules = [one.target for one in joint if not isinstance(one.layer, ParamWrapper)]
    config = OFTConfig(
        **fields_of_spec(usual), layer_settings={one.key: own[one.target] for one in joint if one.target in own},
        block_size_fallback="nearest", task_type=like.task_type, inference_mode=True,
        target_modules="|".join(map(re.escape, sorted(modules))) if modules else [],
        target_parameters=[one.target for one in joint if isinstance(one.layer, ParamWrapper)] or None,
    )  # fmt: skip
    config.base_model_name_or_path = like.base_model_name_or_path
    return config


@torch.no_grad()
def _fill(joint: Sequence[Joint], name: str) -> None:
    for one in joint:
        rotations: dict[str, Any] = dict(one.layer.rotations(name))
        for part, rotation in rotations.items():
            if isinstance(one.state, FamilyTransform):
                rotation.weight.copy_(one.state.numbers)
                if one.state.basis is not None:
                    rotation.basis.copy_(one.state.basis)
            else:
                rotation.weight.copy_(one.state.rotations[part])
        if one.state.magnitude is not None:
            one.layer.oft_magnitude[name].weight.copy_(one.state.magnitude)


def _frozen(tuner: BaseTuner, active: Sequence[str]) -> bool:
    """Whether the active adapters were not being trained."""
    held = [p for name in active for _, layer in adapted_layers(tuner.model, name) for p in layer.stored(name)]
    return not any(p.requires_grad for p in held)
