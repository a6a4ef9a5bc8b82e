"""The change that an adapter makes to each weight of a base, for exports that hold only the change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from orthotune.errors import MergeError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.layers.conv import TransposedConv
from orthotune.operations.checkpoint.plan import Plan
from orthotune.operations.checkpoint.stream import DenseMerge


@dataclass(frozen=True)
class Change:
    """The change of one module's weight, computed by :meth:`compute`.

    Attributes:
        component: name in the pipeline; "" for a base that is one model.
        module: name of the module in its component.
        shape: shape of the weight, as ``(out, in, *kernel)``.
        stored_transposed: whether the base stores ``(in, out)``.
    """

    component: str
    module: str
    shape: tuple[int, ...]
    stored_transposed: bool
    layer: OFTLayer
    plan: Plan
    parameter: str

    @property
    def name(self) -> str:
        """Component and module, joined by a dot."""
        return f"{self.component}.{self.module}" if self.component else self.module

    def compute(self) -> Tensor:
        """``W' - W`` in float32 (float64 for a float64 base), ``(out, in, *kernel)``."""
        weight, rotated = self.plan.rotated(self.parameter)
        change = rotated - weight
        return change.mT if self.stored_transposed else change


def changes(merge: DenseMerge) -> Iterator[Change]:
    """The change of each module that the adapter changes, in the order of the base's files.

    Raises:
        MergeError: the adapter replaces parameters (``modules_to_save``, biases), or rotates a layer that has more than
            one weight.
    """
    replaced = [name for plan in merge.plans for name in plan.skeleton.replaced]
    if replaced:
        raise MergeError(
            "the change of the weights",
            got=f"{len(replaced)} parameters that the adapter replaces: {shortened(replaced)}",
            needed="an adapter that only rotates weights", do="Export the merged model with --to dense",
        )  # fmt: skip
    for plan in merge.plans:
        own = plan.skeleton
        order = {entry: number for number, entry in enumerate(plan.entries)}
        for parameter in sorted(own.layers, key=lambda p: order.get(own.origins[p].copies[0][0], 0)):
            layer, name = own.layers[parameter]
            if name != "weight":
                raise MergeError(
                    f"the change of '{parameter}'", got=f"a {type(layer.get_base_layer()).__name__}",
                    needed="layers with one weight", do="Export the merged model with --to dense",
                )  # fmt: skip
            if isinstance(layer, TransposedConv):
                raise MergeError(
                    f"the change of '{parameter}'", got="a transposed convolution, for which no such file has a form",
                    needed="linear layers and convolutions", do="Export the merged model with --to dense",
                )  # fmt: skip
            yield _change(plan, parameter, layer)


def _change(plan: Plan, parameter: str, layer: OFTLayer) -> Change:
    models = plan.skeleton.models.items()
    component, prefix = next((c, p) for c, (_, p) in models if parameter.startswith(p) and _holds(plan, c, layer))
    base, shape = layer.get_base_layer(), plan.skeleton.shapes[parameter]
    transposed = isinstance(base, Conv1D)
    module = parameter.removeprefix(prefix).removesuffix(".weight")
    natural = (shape[1], shape[0]) if transposed else shape
    return Change(component, module, natural, transposed, layer, plan, parameter)


def _holds(plan: Plan, component: str, layer: OFTLayer) -> bool:
    model, _ = plan.skeleton.models[component]
    return any(module is layer for module in model.modules())
