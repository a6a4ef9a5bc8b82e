"""What an adapter changes in the weights of a base, layer by layer: for exports that hold the change alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import MergeError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.operations.checkpoint.plan import Plan
from orthotune.operations.checkpoint.stream import DenseMerge


@dataclass(frozen=True)
class Change:
    """The change of one module's weight, computed when it is asked for.

    Attributes:
        component: of a pipeline; "" for a base that is one model.
        module: name of the module in its component.
        shape: of the weight, as ``(out, in, *kernel)``.
        stored_transposed: whether the base stores ``(in, out)``.
    """

    component: str
    module: str
    shape: tuple[int, ...]
    stored_transposed: bool
    base: nn.Module
    plan: Plan
    parameter: str

    @property
    def name(self) -> str:
        """Component and module."""
        return f"{self.component}.{self.module}" if self.component else self.module

    def compute(self) -> Tensor:
        """``W' - W`` in float32 (float64 for a float64 base), ``(out, in, *kernel)``."""
        weight, turned = self.plan.turned(self.parameter)
        change = turned - weight
        return change.mT if self.stored_transposed else change


def changes(merge: DenseMerge) -> Iterator[Change]:
    """Every module that the adapter changes, in the order of the base's files.

    Raises:
        MergeError: the adapter holds parameters whole (``modules_to_save``, biases), which is no change of a weight;
        or turns something that has more than one weight.
    """
    whole = [name for plan in merge.plans for name in plan.skeleton.replaced]
    if whole:
        raise MergeError(
            "the change of the weights",
            got=f"{len(whole)} parameters that the adapter holds whole: {shortened(whole)}",
            needed="an adapter that only turns weights", do="Export the whole model with --to dense",
        )  # fmt: skip
    for plan in merge.plans:
        own = plan.skeleton
        order = {entry: number for number, entry in enumerate(plan.entries)}
        for parameter in sorted(own.layers, key=lambda p: order.get(own.origins[p].copies[0][0], 0)):
            layer, name = own.layers[parameter]
            if name != "weight":
                raise MergeError(
                    f"the change of '{parameter}'", got=f"a {type(layer.get_base_layer()).__name__}",
                    needed="layers with one weight", do="Export the whole model with --to dense",
                )  # fmt: skip
            yield _change(plan, parameter, layer)


def _change(plan: Plan, parameter: str, layer: OFTLayer) -> Change:
    models = plan.skeleton.models.items()
    component, prefix = next((c, p) for c, (_, p) in models if parameter.startswith(p) and _holds(plan, c, layer))
    base, shape = layer.get_base_layer(), plan.skeleton.shapes[parameter]
    transposed = isinstance(base, Conv1D)
    module = parameter.removeprefix(prefix).removesuffix(".weight")
    natural = (shape[1], shape[0]) if transposed else shape
    return Change(component, module, natural, transposed, base, plan, parameter)


def _holds(plan: Plan, component: str, layer: OFTLayer) -> bool:
    model, _ = plan.skeleton.models[component]
    return any(module is layer for module in model.modules())
