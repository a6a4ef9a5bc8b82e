"""Which way a call of an adapted layer takes, and why: the meaning is one, the paths differ in speed.

The meaning of every layer is ``y = rotate_out(base(rotate_in(x)))``, which for a linear map is the base with the
weight ``W' = M W R^T``. What a base does beside its weight (hooks, a forward of its own) acts on the original input
and with ``W'``, as it will after merging.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from orthotune.layers.offloaded import hosted
from orthotune.layers.settings import Slot

#: ``base``: no adapter acts here. ``input``: the input is rotated and the base runs. ``sides``: the output is rotated
#: or scaled, too. ``weight``: the weight is rotated and the kind's own function runs. ``patches``: the patches of a
#: convolution are rotated. ``call``: the base itself is called with the adapted weight instead of its own.
Path = Literal["base", "input", "sides", "weight", "patches", "call"]


@dataclass(frozen=True)
class Plan:
    """The path that a call takes, and the reason in a few words.

    Example:
        >>> print(Plan("base", "no adapter is active"))
        base: no adapter is active
    """

    path: Path
    why: str

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


@dataclass(frozen=True)
class InUse:
    """The adapters that a forward has to apply, in the order in which they act, and their requirements."""

    adapters: tuple[str, ...]
    #: the path is ``call``, whatever the input: a frozen map, or an adapter beside another one that is merged
    by_weight: bool
    #: an output is rotated or scaled
    outputs_change: bool
    why: str


class Planned(Protocol):
    """The interface of an adapted layer that a plan uses."""

    slots: dict[str, Slot]

    @property
    def in_use(self) -> InUse:
        """The adapters that a forward has to apply."""

    def opaque(self) -> str | None:
        """Why the base may do more than the product with its weight."""

    def own_path(self, x: Any) -> Plan:
        """The path of a call whose base is known to be plain."""

    def rotations(self, adapter_name: str) -> dict[str, Any]:
        """Part name -> rotation of an adapter."""


INPUT = Plan("input", "every active adapter rotates inputs alone")
SIDES = Plan("sides", "an active adapter rotates or scales outputs")
ROWS = Plan("weight", "so many rows that rotating the weight is less work")
KERNEL = Plan("weight", "the rotation mixes the points of the kernel, so the kernel is rotated")
PATCHES = Plan("patches", "so few patches that rotating them is less work than rotating the kernel")
LARGE = Plan("weight", "signals so large that rotating the kernel is less work")
PARTS = Plan("call", "the layer's weights are read by a function of its own")


def plan(layer: Planned, x: Any = None) -> Plan:
    """The path that ``layer(x)`` takes now; nothing is changed.

    Args:
        layer: an adapted layer.
        x: the input; without one, the path of few rows.

    Example:
        >>> import torch
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> print(plan(model.base_model.model[0], torch.zeros(1, 8)))
        input: every active adapter rotates inputs alone
    """
    use = layer.in_use
    if not use.adapters:
        return Plan("base", use.why)
    if use.by_weight:
        return Plan("call", use.why)
    reason = layer.opaque()
    return layer.own_path(x) if reason is None else Plan("call", reason)


def opaque(base: nn.Module, plain: tuple[Callable[..., Any], ...]) -> str | None:
    """Why a base may do more than the product with its weight; None when its forward is one of ``plain``.

    Example:
        >>> opaque(nn.Linear(2, 2), (nn.Linear.forward,)) is None
        True
    """
    if base._forward_hooks or base._forward_pre_hooks or base._backward_hooks or base._backward_pre_hooks:
        return "the wrapped layer has hooks, which see the original input and the final output"
    own = base.__dict__.get("forward")
    if own is not None and not hosted(base):
        return f"{type(base).__name__} has a forward of its own on the instance"
    if type(base).forward not in plain:
        return f"{type(base).__name__} has a forward of its own"
    return None


def explain(layer: Planned, x: Tensor | None = None) -> str:
    """One line for each thing that decides what a call of ``layer`` costs: its plan, memos and shared input.

    Args:
        layer: an adapted layer.
        x: the input whose plan is wanted.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> print(explain(model.base_model.model[0]))
        plan: input: every active adapter rotates inputs alone
        default: miss: nothing was computed yet
    """
    lines = [f"plan: {plan(layer, x)}"]
    if getattr(layer, "merge_aware", False):
        lines.append(
            "merge-aware: the adapted weight is quantized in every call, whatever the plan is, unless an adapter is "
            "merged or the rows of a batch have several"
        )
    for name, slot in layer.slots.items():
        for part, rotation in layer.rotations(name).items():
            lines.append(f"{name}{'.' * bool(part)}{part}: {rotation.memo.explain()}")
        if slot.shared is not None and slot.shared.count > 1:
            paused = slot.shared.why_not
            lines.append(f"{name}: " + (f"shares its input with {slot.shared.count - 1} others" if paused is None
                                        else f"rotates its own input: {paused}"))  # fmt: skip
    return "\n".join(lines)
