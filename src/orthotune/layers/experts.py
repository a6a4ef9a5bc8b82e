"""Parameters that no module of their own holds: the stacked weights of mixture-of-experts layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.base import OFTLayer
from orthotune.layers.plan import opaque
from orthotune.layers.settings import LayerSettings

#: classes that store (experts, in, out) without saying so in an attribute
INPUT_FIRST = {"Llama4TextExperts"}


class ParamWrapper(OFTLayer):
    """One parameter ``(experts, out, in)``, ``(experts, in, out)`` or ``(out, in)`` of a module, a rotation per expert.

    Several parameters of one module are wrapped one around another. The class name and ``parameter_name`` are what
    PEFT's host looks for when it adds a second adapter.
    """

    beyond_peft = "target_parameters"

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        settings: LayerSettings,
        parameter_name: str,
        input_first: bool = False,
    ) -> None:
        self._which = (parameter_name, input_first)  # read by prepare, which the constructor calls
        super().__init__(base_layer, adapter_name, settings)

    def prepare(self, settings: LayerSettings) -> None:
        base = self.get_base_layer()
        self.parameter_name, input_first = self._which
        marked = getattr(base, "is_transposed", False) or type(base).__name__ in INPUT_FIRST
        self.input_first = bool(input_first or marked)
        found = getattr(base, self.parameter_name)
        if found.dim() not in (2, 3):
            raise UnsupportedLayerError(
                f"parameter '{settings.layer}'",
                got=f"shape {tuple(found.shape)}",
                needed="(out, in), (experts, out, in) or (experts, in, out)",
                do="Leave it out of target_parameters",
            )

    @property
    def weight(self) -> Tensor:
        """The wrapped parameter, as the layer computes with it."""
        return self.seen(self.parameter_name)

    def base_parameters(self) -> dict[str, nn.Parameter]:
        return {self.parameter_name: getattr(self.get_base_layer(), self.parameter_name)}

    def matrices(self) -> dict[str, Tensor]:
        weight = getattr(self.get_base_layer(), self.parameter_name)
        return {"": weight.mT if self.input_first else weight}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {self.parameter_name: matrices[""].mT if self.input_first else matrices[""]}

    def natural(self, weight: Tensor) -> Tensor:
        return weight.mT if self.input_first else weight

    def no_lora_form(self, added: bool = False) -> str:
        return f"the parameter '{self.parameter_name}' of a {type(self.get_base_layer()).__name__}, not a layer"

    def opaque(self) -> str | None:
        """Nothing is assumed of its forward: the base is always called with the adapted parameter."""
        return None

    def inside(self) -> tuple[list[OFTLayer], nn.Module]:
        """The wrappers around the same module whose parameters come with this one's, and what is inside them all."""
        wrappers: list[OFTLayer] = []
        base: Any = self.base_layer
        while isinstance(base, ParamWrapper) and opaque(base, (ParamWrapper.forward,)) is None:
            wrappers.append(base)
            base = base.base_layer
        return wrappers, base

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # A mixture reads private attributes of its experts, too; what a host has noted about them is not ours.
            if name.startswith(("__", "_hf", "_diffusers", "_is_", "ds_", "_which")) or not self._modules:
                raise
            return getattr(self.base_layer, name)

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """As for every layer, through all wrappers of the module."""
        base = super().unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        if isinstance(base, ParamWrapper):
            return base.unload_and_optionally_merge_module(merge, safe_merge, adapter_names)
        return base
